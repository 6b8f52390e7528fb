"""Prompts, scenes and images of a split, and the checker's verdict on images.

The mix of categories is exact up to rounding and each category cycles through its captions, so that two sets
of the same size differ as little as they can: a different mix alone moves a Frechet distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.io.pixels import from_bytes
from rank_e.seeds import seed_for
from rank_e.shapes.captions import CATEGORIES, COMPOSITIONS, Composition, parse_caption, split_of
from rank_e.shapes.checker import check
from rank_e.shapes.render import render
from rank_e.shapes.scene import Scene, make_scene

SPLITS: tuple[str, ...] = ("train", "validation", "held_out")
SHARES: dict[str, float] = {
    "one object": 0.10,
    "two objects": 0.15,
    "counting": 0.25,
    "colors": 0.15,
    "position": 0.20,
    "color attribution": 0.15,
}


@dataclass(frozen=True)
class Prompt:
    """A caption to render: its index in its set, text, GenEval category and composition."""

    id: int
    text: str
    category: str
    composition: Composition

    @classmethod
    def from_text(cls, prompt_id: int, text: str) -> "Prompt":
        """The prompt of a caption, category and composition parsed. Raises RankEError as `parse_caption`."""
        composition = parse_caption(text)
        return cls(prompt_id, text, composition.category, composition)


def compositions(split: str) -> list[Composition]:
    """Every composition of one of SPLITS; no two share a meaning (see captions.meaning)."""
    if split not in SPLITS:
        raise RankEError(f"split {split!r} of the embedded world is unknown: use one of {', '.join(SPLITS)}")
    return [c for c in COMPOSITIONS.values() if split_of(c) == split]


def prompts(split: str, n: int, seed: int) -> list[Prompt]:
    """`n` prompts of a split in random order, categories by SHARES (largest remainder), ids 0 to n - 1.

    Within a category the captions come in random order, and again only after all of them have come.
    """
    rng = np.random.default_rng(seed_for(seed, "shapes", split, "prompts"))
    known = set(compositions(split))
    texts: list[str] = []
    for category, count in zip(CATEGORIES, _quotas(n), strict=True):
        captions = [text for text, c in COMPOSITIONS.items() if c.category == category and c in known]
        while count > 0:
            order = rng.permutation(len(captions))[:count]
            texts += [captions[i] for i in order]
            count -= len(order)
    return [Prompt.from_text(i, texts[j]) for i, j in enumerate(rng.permutation(len(texts)))]


def scene_for(prompt: Prompt, seed: int) -> Scene:
    """A real scene for a prompt; depends on the seed, the prompt's id and its text alone."""
    rng = np.random.default_rng(seed_for(seed, "shapes", "scene", prompt.id, prompt.text))
    return make_scene(prompt.composition, prompt.text, prompt.id, rng)


def scenes(split: str, n: int, seed: int) -> list[Scene]:
    """`n` real scenes of a split: one for each of `prompts(split, n, seed)`, in that order."""
    return [scene_for(prompt, seed) for prompt in prompts(split, n, seed)]


def images(scenes: Sequence[Scene]) -> Tensor:
    """Draw scenes: float32 [N, 3, 48, 48] in [0, 1]."""
    if not scenes:
        raise RankEError("no scenes to render: ask for at least one")
    drawn = np.stack([render(scene) for scene in scenes])
    return from_bytes(torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous())


def check_images(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Bool [N]: does image i ([0, 1], [N, 3, 48, 48], any device) show exactly what prompt i asks for?"""
    if len(images) != len(prompts):
        raise RankEError(f"{len(images)} images for {len(prompts)} prompts: give one prompt per image")
    arrays = images.detach().float().cpu().numpy()
    verdicts = [check(array, prompt.composition) for array, prompt in zip(arrays, prompts, strict=True)]
    return torch.tensor(verdicts, dtype=torch.bool)


def _quotas(n: int) -> list[int]:
    """Prompts of each category, by CATEGORIES: shares rounded to sum to n (largest remainder)."""
    if n < 1:
        raise RankEError(f"{n} prompts asked for: ask for at least one")
    exact = [SHARES[category] * n for category in CATEGORIES]
    quotas = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for i in by_remainder[: n - sum(quotas)]:
        quotas[i] += 1
    return quotas
