"""Stage ranking: decode the rollouts with the EMA decoder, score them, and rank each prompt's group."""

import torch

from rank_e.models.backbone import load_backbone
from rank_e.models.tokenizer import to_unit
from rank_e.objectives.anchors import temperature_at
from rank_e.objectives.grpo import group_advantages
from rank_e.objectives.rank_gan import keep_top, rank_weights
from stages.artifacts import ArtifactWriter, read_artifact
from stages.runtime import Stage, main


@torch.no_grad()
def run(stage: Stage) -> None:
    """ranking.safetensors: rewards, advantages, rank_weights [P, G] (weight 0 = not among the kept); metrics.json."""
    prompts = read_artifact(stage.path("prompts"), "prompts")
    rollouts = read_artifact(stage.path("rollouts"), "rollouts")
    decoder = read_artifact(stage.path("decoder", round=stage.round - 1), "decoder")
    backbone = load_backbone(stage.params.backbone.name, stage.params.backbone.base)
    tokenizer = backbone.tokenizer(decoder.tensors("ema"))
    settings, policy = stage.arm_params.ranking, stage.arm_params.policy
    reward = backbone.reward(settings.reward)
    tokens = rollouts.tensors("rollouts")["tokens"].long()
    texts = [text for text in prompts.table("prompts")["prompt"] for _ in range(tokens.shape[1])]
    flat = tokens.flatten(0, 1)
    scores = []
    for start in stage.progress(range(0, len(flat), settings.batch_size), "ranking"):
        end = start + settings.batch_size
        pictures = to_unit(tokenizer.decode_tokens(flat[start:end])).clamp(0, 1)
        scores.append(reward(pictures, texts[start:end]))
    rewards = torch.cat(scores).view(tokens.shape[:2])
    schedule = settings.temperature
    temperature = temperature_at(stage.round - 1, schedule.start, schedule.end, schedule.rounds)
    kept = keep_top(rewards, min(settings.keep, rewards.shape[1]))
    weights = torch.zeros_like(rewards).scatter(1, kept, rank_weights(rewards.gather(1, kept), temperature))
    inputs = {"prompts": prompts.path, "rollouts": rollouts.path, "decoder": decoder.path}
    with ArtifactWriter(stage.path("ranking"), "ranking", seed=stage.seed, inputs=inputs) as out:
        out.tensors(
            "ranking",
            {
                "rewards": rewards,
                "advantages": group_advantages(rewards, policy.minimum_std, policy.advantage_clamp),
                "rank_weights": weights,
            },
        )
        out.json(
            "metrics",
            {
                "reward_mean": rewards.mean().item(),
                "reward_std": rewards.std(dim=1).mean().item(),
                "temperature": temperature,
            },
        )


if __name__ == "__main__":
    main("ranking", run)
