"""Stage ranking: decode the rollouts with the EMA decoder, score them, and rank each prompt's group."""

import torch

from rank_e.io.pixels import from_signed
from rank_e.objectives.grpo import group_advantages
from rank_e.objectives.rank_gan import keep_top, rank_weights, temperature_at
from rank_e.precision import Precision
from rank_e.rewards.base import RewardError
from rank_e.rewards.mixture import RawScores
from stages.runtime.artifacts import Artifact, read_artifact
from stages.runtime.backbone import backbone_of, dtype_of
from stages.runtime.rewards import rewards_of
from stages.runtime.sharing import once
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """ranking.safetensors: rewards, advantages, rank_weights [P, G] (weight 0 = not among the kept).

    rewards.json: the running statistics of rewards that are normalised, for the next round. metrics.json: reward_mean
    and reward_std (inside a group) of the mixture, reward_NAME (mean raw score) of each reward, temperature.
    """
    inputs = {
        "prompts": read_artifact(stage.path("prompts"), "prompts"),
        "rollouts": read_artifact(stage.path("rollouts"), "rollouts"),
        "decoder": read_artifact(stage.path("decoder", round=stage.round - 1), "decoder"),
        "previous": read_artifact(stage.path("ranking", round=stage.round - 1), "ranking"),
    }
    once(stage, inputs, lambda: rank(stage, inputs))


@torch.no_grad()
def rank(stage: Stage, inputs: dict[str, Artifact]) -> None:
    """Decode, score, rank and write."""
    tokenizer = backbone_of(stage).tokenizer(inputs["decoder"].tensors("ema"))
    settings = stage.arm_params.ranking
    precision = Precision(stage.device, dtype_of(stage))
    mixture = rewards_of(stage, inputs["previous"].json("rewards"))
    tokens = inputs["rollouts"].tensors("rollouts")["tokens"].long()
    texts = [text for text in inputs["prompts"].table("prompts")["prompt"] for _ in range(tokens.shape[1])]
    flat = tokens.flatten(0, 1)
    batches: list[RawScores] = []
    at_once = stage.memory.at_once(settings.batch_size)
    for start in stage.progress(range(0, len(flat), at_once), "ranking"):
        end = start + at_once
        with precision.autocast():
            decoded = tokenizer.decode_tokens(flat[start:end].to(stage.device))
        images = from_signed(decoded.float()).clamp(0, 1)  # a float32 island: pixels are float32
        batches.append({name: raw.cpu() for name, raw in mixture.raw_scores(images, texts[start:end]).items()})
    scores = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    mixture.observe(scores)  # before they are used: the first round has statistics too
    rewards = mixture.combine(scores).view(tokens.shape[:2])
    if float(rewards.min()) == float(rewards.max()):
        value = f"all {rewards.numel()} rollouts of round {stage.round} got {float(rewards[0, 0]):g}"
        raise RewardError(f"{stage.title}: the reward is constant, {value}: it ranks nothing; see ranking.rewards")
    schedule = settings.temperature
    temperature = temperature_at(stage.round - 1, schedule.start, schedule.end, schedule.rounds)
    kept = keep_top(rewards, min(settings.keep, rewards.shape[1]))
    weights = torch.zeros_like(rewards).scatter(1, kept, rank_weights(rewards.gather(1, kept), temperature))
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with stage.writer("ranking", inputs=paths) as out:
        out.tensors(
            "ranking",
            {
                "rewards": rewards,
                "advantages": group_advantages(rewards, settings.minimum_std, settings.advantage_clamp),
                "rank_weights": weights,
            },
        )
        out.json("rewards", mixture.state())
        out.json(
            "metrics",
            {
                "reward_mean": rewards.mean().item(),
                "reward_std": rewards.std(dim=1).mean().item(),
                "temperature": temperature,
                **{f"reward_{name}": raw.mean().item() for name, raw in scores.items()},
            },
        )


if __name__ == "__main__":
    main("ranking", run)
