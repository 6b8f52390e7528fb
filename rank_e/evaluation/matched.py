"""Frechet distances of the images that are right alone, every caption weighing as much as in the prompts.

A plain distance mixes two things: what images show and how well it is drawn. A policy that draws more captions right
changes the mix of contents, which alone moves the distance. Here both sides show the same captions in the same shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.evaluation.frechet import Moments, frechet_distance
from rank_e.evaluation.metric import Metric

LEAST_IMAGES, LEAST_CAPTIONS = 64, 2
"""Of fewer accepted images, or of fewer captions, no distance is told."""


def matched_key(distance: str) -> str:
    """The key in metrics.json of a matched distance."""
    return f"{distance}_matched"


def matched_metric(distance: Metric, score: str) -> Metric:
    """What the matched distance says of itself; `score` is the name of the metric that accepts images."""
    meaning = f"{distance.name} of the images with {score} 1, caption by caption, extrapolated to infinitely many"
    return replace(distance, name=f"{distance.name}, matched", better="lower", meaning=meaning)


class Accepted(NamedTuple):
    """Weights float64 [N, 3] of all accepted images, of every other one of each caption, and of the rest (0: left out).

    `captions` are those that are kept, in alphabetical order; `images` is how many images have a weight.
    """

    weights: Tensor
    captions: list[str]
    images: int


def accepted_images(captions: Sequence[str], accepted: Tensor, least: int, known: Iterable[str]) -> Accepted | None:
    """Weights of N images: those of a kept caption sum to how often it is among the N `captions`.

    `accepted`, bool [N], says which images count. A caption with fewer than `least` >= 2 of them, or one that is not
    `known`, is left out. None where fewer than LEAST_IMAGES images or LEAST_CAPTIONS captions remain. RankEError for
    a smaller `least`: a half of two must not be empty.
    """
    if least < 2 or accepted.shape != (len(captions),):
        raise RankEError(f"accepted_images: {len(captions)} captions, {list(accepted.shape)} accepted, least {least}")
    listed, there = Counter(captions), set(known)
    places: dict[str, list[int]] = {}
    for place in accepted.nonzero()[:, 0].tolist():
        places.setdefault(captions[place], []).append(place)
    kept = {
        caption: places[caption] for caption in sorted(places) if caption in there and len(places[caption]) >= least
    }
    images = sum(map(len, kept.values()))
    if images < LEAST_IMAGES or len(kept) < LEAST_CAPTIONS:
        return None
    weights = torch.zeros(len(captions), 3, dtype=torch.float64)
    for caption, own in kept.items():
        for column, some in enumerate((own, own[::2], own[1::2])):
            weights[some, column] = listed[caption] / len(some)
    return Accepted(weights, list(kept), images)


def weighted_moments(parts: Iterable[Tensor], weights: Tensor, device: torch.device | None = None) -> list[Moments]:
    """Moments of the same rows under each column of `weights` float64 [N, K], float64 on the CPU.

    `parts` are the features of the N images in their order, [n, D] or [n, P, D] each; an image's P rows share its
    weight. With weights w that sum to 1 the covariance is sum w (x - m)(x - m)^T / (1 - sum w^2), which is unbiased,
    and the usual one for equal weights. `n` counts the rows that have a weight.
    """
    weights, parts, start = weights.to(device or torch.device("cpu")), iter(parts), 0
    first = next(parts)
    columns, dim = weights.shape[1], first.shape[-1]
    # Centring keeps the sums' digits; any centre gives the same moments.
    centre = first.to(weights.device, torch.float64).reshape(-1, dim).mean(0)
    totals, squares, counts = weights.new_zeros(3, columns)
    sums, scatters = weights.new_zeros(columns, dim), weights.new_zeros(columns, dim, dim)
    for part in chain([first], parts):
        rows = part.to(weights.device, torch.float64).reshape(-1, dim) - centre
        own = weights[start : start + len(part)].repeat_interleave(len(rows) // len(part), 0)
        start += len(part)
        for column, weight in enumerate(own.T):
            taken = weight > 0
            weighted = rows[taken] * weight[taken, None]
            sums[column] += weighted.sum(0)
            scatters[column].addmm_(weighted.T, rows[taken])
        totals += own.sum(0)
        squares += own.square().sum(0)
        counts += (own > 0).sum(0)
    found = []
    for total, square, count, summed, scatter in zip(totals, squares, counts, sums, scatters, strict=True):
        offset = summed / total
        cov = (scatter / total - torch.outer(offset, offset)) / (1 - square / total.square())
        found.append(Moments((centre + offset).cpu(), cov.cpu(), int(count)))
    return found


def matched_distance(
    parts: Iterable[Tensor], weights: Tensor, reference: Moments, device: torch.device | None = None
) -> float:
    """The distance of accepted images to `reference`, extrapolated to infinitely many of them.

    `weights` [N, 3] as of `accepted_images`. 2 FD(all) - mean of FD(one half), FD(other half): a distance of n images
    is too large by about c / n, and arms differ in how many of their images are accepted. It may fall below zero.
    """
    found = weighted_moments(parts, weights, device)
    whole, *halves = (frechet_distance(reference, moments, device) for moments in found)
    return 2 * whole - sum(halves) / len(halves)
