"""What a reward is: one call from pictures and prompts to scores, and the checks that every reward shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rank_e.errors import RankEError


class RewardError(RankEError):
    """A reward that cannot be used: unknown, given the wrong pictures, or not finite."""


class Reward(Protocol):
    """A score of how well pictures match prompts.

    `images` float32 [N, 3, H, W] in [0, 1] and N `prompts` -> scores float32 [N], higher is better,
    differentiable from the pixels (a decoder learns from that gradient). Raises RewardError rather than score
    something else.
    """

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor: ...


_FACTORIES: dict[str, Callable[..., Reward]] = {}


def register(name: str) -> Callable[[Callable[..., Reward]], Callable[..., Reward]]:
    """Class decorator: make a reward available to `create` as `name`. Raises RewardError for a name in
    use.
    """

    def add(factory: Callable[..., Reward]) -> Callable[..., Reward]:
        if name in _FACTORIES:
            raise RewardError(f"reward {name!r} is registered twice: choose another name")
        _FACTORIES[name] = factory
        return factory

    return add


def create(name: str, *args: object, **options: object) -> Reward:
    """The reward registered as `name`, built with the arguments given. Raises RewardError for an unknown
    name.
    """
    if name not in _FACTORIES:
        raise RewardError(f"ranking.reward: unknown reward {name!r}; known: {', '.join(sorted(_FACTORIES))}")
    return _FACTORIES[name](*args, **options)


def check_pairs(name: str, images: Tensor, prompts: list[str]) -> None:
    """Raise RewardError unless `images` is a float [N, 3, H, W] with one prompt for each picture, N > 0."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise RewardError(
            f"reward {name}: pictures are {images.dtype} {list(images.shape)}; give float [N, 3, H, W] in [0, 1]"
        )
    if len(images) != len(prompts) or not prompts:
        raise RewardError(f"reward {name}: {len(images)} pictures for {len(prompts)} prompts; give one for each")


def check_scores(name: str, scores: Tensor) -> Tensor:
    """`scores` [N] unchanged; raises RewardError with the first index that is NaN or infinite."""
    finite = torch.isfinite(scores.detach())
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise RewardError(f"reward {name}: score of picture {index} is {scores[index].item()}; check its pixels")
    return scores
