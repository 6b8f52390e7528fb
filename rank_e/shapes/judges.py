"""The embedded world's reward, perceptual loss and judges, as the factories that `params.yaml` names.

They are given like anyone's own: `kind: "package.module:factory"`, called with the weights' folder, the device and
the entry's further keys. The evaluator that judges is another CLIP than the one that rewards.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from rank_e.files import sha256_of
from rank_e.judges.base import Pictures, check_values
from rank_e.metrics.features import evaluator_features, patch_features
from rank_e.rewards.clip import ClipModel, ClipReward
from rank_e.shapes import clip, dataset
from rank_e.shapes.backbone import load_clip
from rank_e.shapes.perceptual import Perceptual

PATCH_SEED = 0  # where patches are cut out: the same places in every batch, for every arm


def clip_reward(folder: Path, device: torch.device) -> ClipReward:
    """100 cos(picture, prompt) by the reward's CLIP."""
    return ClipReward(load_clip(folder, "reward", clip.REWARD, device), clip.tokenize)


def perceptual(folder: Path, device: torch.device) -> Perceptual:
    """A distance by the reward CLIP's early features."""
    return Perceptual(load_clip(folder, "reward", clip.REWARD, device))


@lru_cache(maxsize=1)
def _evaluator(folder: Path, device: torch.device) -> ClipModel:
    return load_clip(folder, "evaluator", clip.EVALUATOR, device)


@lru_cache(maxsize=1)
def _source(folder: Path) -> str:
    return sha256_of(folder / "evaluator.safetensors")


def _unit(pictures: Pictures, device: torch.device) -> Tensor:
    return torch.stack(list(pictures)).to(device).float() / 255


class ShapesFeatures:
    """A feature network: pictures -> float32 [N, D], or [N, P, D] for P places of each."""

    def __init__(self, network: Callable[[Tensor], Tensor], device: torch.device, *, protocol: str, source: str):
        self.network, self.device, self.protocol, self.source = network, device, protocol, source

    def __call__(self, pictures: Pictures) -> Tensor:
        return check_values(self.protocol, self.network(_unit(pictures, self.device)).cpu())


class ShapesScore:
    """A scorer: pictures and prompts -> float32 [N]."""

    def __init__(
        self, score: Callable[[Tensor, list[str]], Tensor], device: torch.device, *, protocol: str, source: str
    ):
        self.score, self.device, self.protocol, self.source = score, device, protocol, source

    @torch.no_grad()
    def __call__(self, pictures: Pictures, prompts: Sequence[str]) -> Tensor:
        return check_values(self.protocol, self.score(_unit(pictures, self.device), list(prompts)).float().cpu())


def last_features(folder: Path, device: torch.device) -> ShapesFeatures:
    """What the evaluator sees last, averaged over the picture."""
    model = _evaluator(folder, device)
    return ShapesFeatures(
        lambda x: evaluator_features(model, x)[0], device, protocol="shapes evaluator, last", source=_source(folder)
    )


def middle_features(folder: Path, device: torch.device) -> ShapesFeatures:
    """What the evaluator sees half-way: texture and edges."""
    model = _evaluator(folder, device)
    return ShapesFeatures(
        lambda x: evaluator_features(model, x)[1], device, protocol="shapes evaluator, middle", source=_source(folder)
    )


def patch_places(folder: Path, device: torch.device) -> ShapesFeatures:
    """Random patches seen by a fixed random network: texture without meaning."""
    return ShapesFeatures(
        lambda x: patch_features(x, PATCH_SEED), device, protocol="random patches, fixed random network", source="none"
    )


def clip_score(folder: Path, device: torch.device) -> ShapesScore:
    """100 cos(picture, prompt) by the evaluator, which no update ever saw."""
    score = ClipReward(_evaluator(folder, device), clip.tokenize, name="clip score")
    return ShapesScore(score, device, protocol="shapes evaluator, 100 cos", source=_source(folder))


def checker(folder: Path, device: torch.device) -> ShapesScore:
    """1 where the exact checker finds what the prompt says, else 0."""

    def check(pictures: Tensor, prompts: list[str]) -> Tensor:
        named = [dataset.Prompt.from_text(index, text) for index, text in enumerate(prompts)]
        return dataset.check_pictures(pictures, named)

    return ShapesScore(check, torch.device("cpu"), protocol="exact checker", source="none")
