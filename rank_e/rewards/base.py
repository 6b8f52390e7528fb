"""What a reward is: one call from images and prompts to scores, and the checks that every reward shares."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rank_e.errors import RankEError


class RewardError(RankEError):
    """A reward that cannot be used: unknown, not loadable, given the wrong images, or not finite."""


class Reward(Protocol):
    """A score of how well images match prompts.

    `images` float32 [N, 3, H, W] in [0, 1] and N `prompts` -> scores float32 [N], higher is better,
    differentiable from the pixels (a decoder learns from that gradient). Raises RewardError rather than score
    something else.
    """

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor: ...


def check_pairs(name: str, images: Tensor, prompts: list[str]) -> None:
    """Raise RewardError unless `images` is a float [N, 3, H, W] with one prompt for each image, N > 0."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise RewardError(
            f"reward {name}: images are {images.dtype} {list(images.shape)}; give float [N, 3, H, W] in [0, 1]"
        )
    if len(images) != len(prompts) or not prompts:
        raise RewardError(f"reward {name}: {len(images)} images for {len(prompts)} prompts; give one for each")


def check_scores(name: str, scores: Tensor) -> Tensor:
    """`scores` [N] unchanged; raises RewardError with the first index that is NaN or infinite."""
    finite = torch.isfinite(scores.detach())
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise RewardError(
            f"reward {name}: score of image {index} is {scores[index].item()}; check the reward and its weights"
        )
    return scores
