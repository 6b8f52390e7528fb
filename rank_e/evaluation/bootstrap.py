"""Bootstrap intervals: how far a metric would move if other images of the same kind had been sampled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.seeds import generator

LEVEL = 0.95
_BLOCK = 256  # images whose Poisson counts come from one generator


def resampling_weights(rows: int, resamples: int, seed: int) -> Tensor:
    """How often each of `rows` rows is taken, with replacement, in each resample: float64 [resamples, rows]."""
    taken = torch.randint(rows, (resamples, rows), generator=generator(seed, "bootstrap", rows))
    return torch.zeros(resamples, rows, dtype=torch.float64).scatter_add_(
        1, taken, torch.ones(resamples, rows, dtype=torch.float64)
    )


def poisson_counts(start: int, count: int, resamples: int, seed: int) -> Tensor:
    """How often images `start` to `start + count` count in each replicate: float64 [count, resamples]."""
    ones = torch.ones(_BLOCK, resamples, dtype=torch.float64)
    first, last = start // _BLOCK, (start + count - 1) // _BLOCK
    blocks = [torch.poisson(ones, generator(seed, "poisson", resamples, block)) for block in range(first, last + 1)]
    return torch.cat(blocks)[start - first * _BLOCK :][:count]


def quantile_interval(replicates: Tensor, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) between which the middle `level` of the replicates (float64 [R]) lies."""
    tail = (1 - level) / 2
    low, high = torch.quantile(replicates, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def bootstrap_interval(
    statistic: Tensor | Callable[[Tensor], float],
    n: int,
    seed: int,
    level: float = LEVEL,
    *,
    rows: int | None = None,
    estimate: float | None = None,
) -> tuple[float, float]:
    """(low, high) of a percentile bootstrap with `n` resamples.

    `statistic` is a vector of values [N], for the interval of its mean, or a function of row weights float64 [N] that
    sum to N; a function needs `rows` = N. With `estimate`, the statistic on the sample itself, the replicates are moved
    so that their mean is the estimate: a Frechet distance grows when rows repeat (the covariance loses rank), which
    shifts every replicate up but says nothing about the sample. The same seed and N give the same resamples for any
    statistic, so arms on the same prompts are resampled in pairs. Raises RankEError unless n >= 2, N >= 2 and
    0 < level < 1.
    """
    count = len(statistic) if isinstance(statistic, Tensor) else rows
    if count is None or count < 2 or n < 2 or not 0 < level < 1:
        raise RankEError(
            f"bootstrap: {count} rows, {n} resamples, level {level}; give 2 or more of each, 0 < level < 1"
        )
    weights = resampling_weights(count, n, seed)
    if isinstance(statistic, Tensor):
        replicates = weights @ statistic.double().cpu() / count
    else:
        replicates = torch.tensor([statistic(row) for row in weights], dtype=torch.float64)
    if estimate is not None:
        replicates = replicates - replicates.mean() + estimate
    return quantile_interval(replicates, level)
