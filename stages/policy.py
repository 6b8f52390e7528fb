"""Stage policy: one round of GRPO on the ranked rollouts; the decoder stays as it is."""

from statistics import fmean

from rank_e.evaluation.tokens import token_histogram, token_kl
from rank_e.sampling.distribution import SamplingConfig
from rank_e.training.policy_update import PolicyUpdate, Rollouts
from stages.runtime.artifacts import Artifact, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.guards import check_guards
from stages.runtime.phases import PHASES
from stages.runtime.sharing import once
from stages.runtime.stage import Stage, main
from stages.runtime.training import train, write


def build(stage: Stage, inputs: dict[str, Artifact]) -> PolicyUpdate:
    """The update as it stands at the beginning of this round."""
    settings, previous = stage.arm_params.rollouts, inputs["previous"]
    text, rollouts = inputs["prompts"].tensors("text"), inputs["rollouts"].tensors("rollouts")
    ranking = inputs["ranking"].tensors("ranking")
    before = previous.json("progress")["updates"]
    online, average = previous.tensors("online"), previous.tensors("ema")
    backbone, params = backbone_of(stage), stage.memory.microbatched(stage.arm_params.policy)
    base = backbone.policy(inputs["reference"].tensors("online")) if params.reads_base else None
    update = PolicyUpdate(
        backbone.policy(online),
        backbone.policy(average),
        base,
        Rollouts(
            text["embeddings"],
            text["mask"].bool(),
            rollouts["tokens"].long().flatten(0, 1),
            rollouts["log_probs"].flatten(0, 1),
            ranking["advantages"].flatten(),
            ranking["rewards"].flatten(),
        ),
        params,
        SamplingConfig(settings.guidance, settings.temperature, settings.top_k, settings.top_p),
        seed=stage.seed,
        round_id=stage.round,
        steps_before=before,
        fast=stage.params.runtime.fast,
    )
    optimizer = previous.tensors("optimizer") if before > 0 else {}
    update.load({"online": online, "ema": average, "optimizer": optimizer})
    return update


def check_tokens(stage: Stage, rollouts: Artifact) -> None:
    """GuardError if the rollouts' codes have left those of the first round behind."""
    first = read_artifact(stage.path("rollouts", round=1), "rollouts")
    now, then = (artifact.tensors("rollouts")["tokens"] for artifact in (rollouts, first))
    codes = int(max(now.max(), then.max())) + 1
    check_guards(stage, token_drift=token_kl(token_histogram(now, codes), token_histogram(then, codes)))


def run(stage: Stage) -> None:
    """online, ema and optimizer.safetensors, progress.json, log.parquet (a row per update), metrics.json."""
    inputs = {
        "prompts": read_artifact(stage.path("prompts"), "prompts"),
        "rollouts": read_artifact(stage.path("rollouts"), "rollouts"),
        "ranking": read_artifact(stage.path("ranking"), "ranking"),
        "previous": read_artifact(stage.path("policy", round=stage.round - 1), "policy"),
        "reference": read_artifact(stage.path("policy", round=0), "policy"),
    }
    check_tokens(stage, inputs["rollouts"])
    once(stage, inputs, lambda: train_policy(stage, inputs))


def train_policy(stage: Stage, inputs: dict[str, Artifact]) -> None:
    """Train and write; a killed stage goes on from its last saved step."""
    inputs["previous"].ahead("online", "ema", "optimizer")
    if stage.arm_params.policy.reads_base:
        inputs["reference"].ahead("online")
    update = build(stage, inputs)
    with PHASES.phase("work"):
        gaps = update.prepare()
    state = stage.state(*(artifact.path for artifact in inputs.values()))
    log = train(stage, update, state, state.load())
    named = {"kl": "kl", "gradient_norm": "grad_norm", "clip_fraction": "clip_fraction"}
    means = {guard: fmean(row[key] for row in log) for guard, key in named.items() if key in log[0]}
    check_guards(stage, **means)
    progress = {"updates": update.steps_before + len(log)}
    write(stage, "policy", update.state(), log, inputs=inputs, metrics=gaps, progress=progress)
    state.remove()


if __name__ == "__main__":
    main("policy", run)
