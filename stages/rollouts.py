"""Stage rollouts: sample G token sequences for every prompt from the arm's policy, with their log-probabilities."""

from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.fitting import fitting_batch
from rank_e.sampling.sampler import Sampler
from rank_e.seeds import seed_for
from stages.runtime.artifacts import Artifact, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.sharing import once
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """rollouts.safetensors: tokens int32 [P, G, L] and log_probs [P, G, L] under the sampled distribution."""
    inputs = {
        "prompts": read_artifact(stage.path("prompts"), "prompts"),
        "policy": read_artifact(stage.path("policy", round=stage.round - 1), "policy"),
    }
    once(stage, inputs, lambda: sample(stage, inputs))


def sample(stage: Stage, inputs: dict[str, Artifact]) -> None:
    """Sample and write."""
    policy = backbone_of(stage).policy(inputs["policy"].tensors("online"))
    text = inputs["prompts"].tensors("text")
    settings = stage.arm_params.rollouts
    count, group = len(text["mask"]), settings.group_size
    # A rollout's seed names its prompt and its place in the group, so all arms get the same random numbers.
    seeds = [seed_for(stage.seed, "rollouts", stage.round, p, g) for p in range(count) for g in range(group)]
    config = SamplingConfig(settings.guidance, settings.temperature, settings.top_k, settings.top_p)
    batch_size = settings.batch_size
    if batch_size == "auto":
        batch_size = fitting_batch(policy, config, count * group)
        print(f"rollouts: {batch_size} samples at once", flush=True)
    samples = Sampler(policy, config, stage.memory.at_once(batch_size), stage.params.runtime.fast)(
        text["embeddings"],
        text["mask"].bool(),
        seeds,
        repeats=group,
        progress=lambda steps: stage.progress(steps, "sampling"),
    )
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with stage.writer("rollouts", inputs=paths) as out:
        out.tensors(
            "rollouts",
            {
                "tokens": samples.tokens.int().view(count, group, -1),
                "log_probs": samples.log_probs.view(count, group, -1),
            },
        )


if __name__ == "__main__":
    main("rollouts", run)
