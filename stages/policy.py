"""Stage policy: one round of GRPO on the ranked rollouts; the decoder stays as it is."""

import copy

import pandas as pd

from rank_e.sampling.sampler import SamplingConfig
from rank_e.training.policy_update import PolicyUpdate, Rollouts
from stages.runtime.artifacts import ArtifactWriter, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main

OPTIMIZER, ONLINE, EMA = "optimizer/", "online/", "ema/"


def run(stage: Stage) -> None:
    """online, ema and optimizer.safetensors, progress.json, log.parquet (a row per update), metrics.json."""
    inputs = {
        "prompts": read_artifact(stage.path("prompts"), "prompts"),
        "rollouts": read_artifact(stage.path("rollouts"), "rollouts"),
        "ranking": read_artifact(stage.path("ranking"), "ranking"),
        "previous": read_artifact(stage.path("policy", round=stage.round - 1), "policy"),
        "reference": read_artifact(stage.path("policy", round=0), "policy"),
    }
    previous, settings = inputs["previous"], stage.arm_params.rollouts
    backbone = backbone_of(stage)
    text, rollouts = inputs["prompts"].tensors("text"), inputs["rollouts"].tensors("rollouts")
    ranking = inputs["ranking"].tensors("ranking")
    online = backbone.policy(previous.tensors("online"))
    before = previous.json("progress")["updates"]
    update = PolicyUpdate(
        online,
        backbone.policy(previous.tensors("ema")),
        backbone.policy(inputs["reference"].tensors("online")),
        Rollouts(
            text["embeddings"],
            text["mask"].bool(),
            rollouts["tokens"].long().flatten(0, 1),
            rollouts["log_probs"].flatten(0, 1),
            ranking["advantages"].flatten(),
            ranking["rewards"].flatten(),
        ),
        stage.arm_params.policy,
        SamplingConfig(settings.guidance, settings.temperature, settings.top_k, settings.top_p),
        seed=stage.seed,
        round_id=stage.round,
        updates=before,
    )
    update.load_weights(previous.tensors("online"), previous.tensors("ema"))
    if before > 0:
        update.load_optimizer(previous.tensors("optimizer"))
    gap = update.prepare()
    state = stage.state(*(artifact.path for artifact in inputs.values()))
    log: list[dict[str, float]] = []
    saved = state.load()
    if saved is not None:  # killed half-way: go on from the last saved update
        tensors, log = saved[0], saved[1]["log"]
        update.load_weights(_part(tensors, ONLINE), _part(tensors, EMA))
        update.load_optimizer(_part(tensors, OPTIMIZER))
        update.updates = before + len(log)
    total = len(update.minibatches)
    for index in stage.progress(range(len(log), total), "policy"):
        metrics = {"step": before + index, **update.step(index)}
        log.append(metrics)
        stage.events.log(before + index, total, metrics)
        if state.due():
            parts = update.state().items()
            state.save({f"{kind}/{n}": t for kind, part in parts for n, t in part.items()}, {"log": copy.copy(log)})
    table = pd.DataFrame(log)
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with ArtifactWriter(stage.path("policy"), "policy", seed=stage.seed, inputs=paths) as out:
        for kind, part in update.state().items():
            out.tensors(kind, part)
        out.json("progress", {"updates": update.updates})
        out.table("log", table)
        out.json("metrics", {**gap, **table.drop(columns="step").mean().to_dict()})
    state.remove()


def _part(tensors: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


if __name__ == "__main__":
    main("policy", run)
