"""What a base is worth: reconstruction, held-out likelihood, checked accuracy of its samples, and its CLIPs' recall."""

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from rank_e.io.pixels import from_bytes, from_signed
from rank_e.rewards.clip import clip_inputs
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import sample
from rank_e.seeds import seed_for
from rank_e.shapes import clip, world
from rank_e.shapes.backbone import ShapesBackbone, load_world_clip
from rank_e.shapes.base import encode_images, real_set
from rank_e.shapes.captions import COMPOSITIONS

SEED = 4242
IMAGES = 512
GUIDANCE = 2.0

# How far a retrained base may lie from the shipped one: several standard errors of each measurement.
TOLERANCE = {
    "reconstruction_accuracy": 0.05,
    "reconstruction_l1": 0.005,
    "held_out_nats": 0.1,
    "accuracy": 0.08,
    "text_recall": 0.1,
    "reward_recall": 0.1,
    "evaluator_recall": 0.1,
}


@torch.no_grad()
def recall(model: Any, images: torch.Tensor, captions: list[str]) -> float:
    """Share of images whose caption is among the five nearest of all the world's captions (many fit an image)."""
    known = list(COMPOSITIONS)
    image = F.normalize(model.encode_image(clip_inputs(model, images)), dim=-1)
    text = F.normalize(model.encode_text(clip.tokenize(known)), dim=-1)
    nearest = (image @ text.T).topk(5).indices
    truth = torch.tensor([known.index(caption) for caption in captions])
    return (nearest == truth[:, None]).any(1).float().mean().item()


@torch.no_grad()
def measure(folder: Path) -> dict[str, float]:
    """Metrics of the base in `folder`, on held-out prompts, after its weights went through float16."""
    device = torch.device("cpu")
    backbone = ShapesBackbone(folder, device, torch.float32)
    reward, evaluator = (
        load_world_clip(folder, name, size, device)
        for name, size in (("reward", clip.REWARD), ("evaluator", clip.EVALUATOR))
    )
    images, captions = real_set("held_out", IMAGES, SEED)
    prompts = [world.Prompt.from_text(i, caption) for i, caption in enumerate(captions)]
    real = from_bytes(images)
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    policy = backbone.policy(backbone.policy_weights())
    tokens = encode_images(tokenizer, images)
    text, mask = backbone.encode_text(captions)
    logits = torch.cat(
        [policy(*rows) for rows in zip(text.split(128), mask.split(128), tokens.split(128), strict=True)]
    )
    seeds = [seed_for(SEED, "measure", index) for index in range(IMAGES)]
    sampled = sample(policy, text, mask, seeds, SamplingConfig(guidance=GUIDANCE), batch_size=256).tokens
    decoded, restored = (
        torch.cat([from_signed(tokenizer.decode_tokens(rows)) for rows in batch.split(128)]).clamp(0, 1)
        for batch in (sampled, tokens)
    )
    return {
        "reconstruction_accuracy": world.check_images(restored, prompts).float().mean().item(),
        "reconstruction_l1": (restored - real).abs().mean().item(),
        "held_out_nats": F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item(),
        "accuracy": world.check_images(decoded, prompts).float().mean().item(),
        "text_recall": recall(backbone.text_encoder.clip, real, captions),
        "reward_recall": recall(reward, real, captions),
        "evaluator_recall": recall(evaluator, real, captions),
    }
