"""Estimates and bootstrap intervals of an `ImageStream` in one pass each, with memory that does not grow with images.

Means: Poisson bootstrap (Chamandy et al., 2012). In every replicate each image counts Poisson(1) times; only
weighted sums are kept. The counts depend on the seed and on the image's index alone, so that arms evaluated on the
same prompts are resampled in pairs.

Frechet distances: bootstrap over fixed shards. Image i belongs to shard i mod S; each shard keeps its count, sum and
scatter, and a replicate takes S shards with replacement. S * D^2 * 8 bytes (671 MB for S = 20, D = 2048). With S
shards the interval's width has a relative error of about 1 / sqrt(2 S) (16 % for 20).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rank_e.evaluation.base import EvaluationError
from rank_e.evaluation.bootstrap import LEVEL, bootstrap_interval, poisson_counts, quantile_interval
from rank_e.evaluation.frechet import Moments, frechet_distance, matrix_root
from rank_e.evaluation.stream import ImageStream
from rank_e.seeds import seed_for

SHARDS = 20


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; low and high are None where no resamples were asked for."""

    value: float
    low: float | None = None
    high: float | None = None

    def nested(self) -> dict[str, float]:
        """{"value": ..., "low": ..., "high": ...}, the latter two if there is an interval."""
        bounds = {} if self.low is None or self.high is None else {"low": self.low, "high": self.high}
        return {"value": self.value, **bounds}


@dataclass(frozen=True)
class ShardSums:
    """Per shard: counts [S], sums [S, D] and scatters [S, D, D] of rows - centre, float64."""

    centre: Tensor
    counts: Tensor
    sums: Tensor
    scatters: Tensor

    @classmethod
    def of(cls, stream: ImageStream, name: str, shards: int = SHARDS, device: torch.device | None = None) -> ShardSums:
        """One pass over features `name` ([n, D] or [n, P, D]); EvaluationError for fewer than two images a shard."""
        if shards < 1 or stream.done < 2 * shards:
            raise EvaluationError(f"{name}: {stream.done} images for {shards} shards; give two a shard at least")
        return cls.placed(stream, name, torch.arange(stream.done) % shards, shards, device)

    @classmethod
    def placed(
        cls, stream: ImageStream, name: str, shard_of: Tensor, shards: int, device: torch.device | None = None
    ) -> ShardSums:
        """One pass over features `name` where image i belongs to shard `shard_of[i]`, int64 [N]; to none below zero."""
        made: ShardSums | None = None
        for start, part in stream.feature_rows(name):
            rows = part.to(device or torch.device("cpu"), torch.float64).flatten(0, -2)
            places = len(rows) // len(part)  # features [n, P, D]: an image's P rows stay in one shard
            if made is None:  # centring keeps the sums' digits; any centre gives the same moments
                dim = rows.shape[1]
                made = cls(
                    rows.mean(0), rows.new_zeros(shards), rows.new_zeros(shards, dim), rows.new_zeros(shards, dim, dim)
                )
            rows = rows - made.centre
            place = shard_of[start : start + len(part)].to(rows.device).repeat_interleave(places)
            for shard in place[place >= 0].unique().tolist():
                own = rows[place == shard]
                made.counts[shard] += len(own)
                made.sums[shard] += own.sum(0)
                made.scatters[shard].addmm_(own.T, own)
        assert made is not None  # feature_rows refuses an empty stream
        return made

    def to(self, device: torch.device) -> ShardSums:
        """The same on a device."""
        return ShardSums(*(x.to(device) for x in (self.centre, self.counts, self.sums, self.scatters)))

    def moments(self) -> Moments:
        """Mean and unbiased covariance of all rows, float64 on the CPU."""
        n = int(self.counts.sum())
        offset = self.sums.sum(0) / n
        cov = (self.scatters.sum(0) - n * torch.outer(offset, offset)) / (n - 1)
        return Moments((self.centre + offset).cpu(), cov.cpu(), n)


class ShardedFrechet:
    """The Frechet distance to `reference` as a function of shard weights float64 [S], for `bootstrap_interval`.

    One weighted sum of S matrices and one eigenvalue problem a call: scatters are multiplied by the reference's root
    once. Uses up `sums.scatters`, to hold S matrices and not 2 S.
    """

    def __init__(self, reference: Moments, sums: ShardSums) -> None:
        device = sums.centre.device
        self.mean, self.trace = reference.mean.to(device), reference.cov.trace().to(device)
        self.root = matrix_root(reference.cov.to(device))
        self.sums = sums
        self.traces = torch.stack([scatter.trace() for scatter in sums.scatters])
        for shard in range(len(sums.scatters)):
            sums.scatters[shard] = self.root @ sums.scatters[shard] @ self.root

    def __call__(self, weights: Tensor) -> float:
        w = weights.to(self.traces)
        n = w @ self.sums.counts
        offset = (w @ self.sums.sums) / n
        projected = self.root @ offset
        product = (torch.tensordot(w, self.sums.scatters, 1) - n * torch.outer(projected, projected)) / (n - 1)
        cross = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
        trace = (w @ self.traces - n * offset.square().sum()) / (n - 1)
        gap = self.sums.centre + offset - self.mean
        return float(gap.square().sum() + self.trace + trace - 2 * cross)


def frechet_estimate(
    stream: ImageStream,
    name: str,
    reference: Moments,
    *,
    seed: int,
    resamples: int,
    shards: int = SHARDS,
    device: torch.device | None = None,
) -> Estimate:
    """Frechet distance of the stream's features `name` to `reference`, with its interval from `resamples` (0: none).

    Replicates are moved so that their mean is the estimate (`bootstrap_interval` says why). A replicate costs one
    eigenvalue problem of size D: seconds on a CPU at D = 2048, so give a `device` there.
    """
    sums = ShardSums.of(stream, name, shards if resamples else 1, device)
    value = frechet_distance(reference, sums.moments(), device)
    if not resamples:
        return Estimate(value)
    low, high = bootstrap_interval(
        ShardedFrechet(reference, sums), resamples, seed_for(seed, "shards"), LEVEL, rows=shards, estimate=value
    )
    return Estimate(value, max(0.0, low), high)


def mean_estimates(stream: ImageStream, name: str, *, seed: int, resamples: int) -> dict[str, Estimate]:
    """Mean of column `name` within each category, and under "" of all images, with 95 % intervals.

    HPSv2's average over its styles is the latter, since they are of one size. Where nothing has a category, only "" is
    given. `resamples` = 0 gives no intervals. Raises EvaluationError for an empty stream.
    """
    sums: dict[str, Tensor] = {}  # per category [2, 1 + resamples]: weighted sums and weights, the sample's first
    for start, columns in stream.rows(name, "category"):
        values = torch.from_numpy(columns[name].astype("float64"))
        weights = torch.ones(len(values), 1, dtype=torch.float64)
        if resamples:
            weights = torch.cat([weights, poisson_counts(start, len(values), resamples, seed)], 1)
        for category in dict.fromkeys(columns["category"].tolist()):
            own = torch.from_numpy(columns["category"] == category)
            added = torch.stack([values[own] @ weights[own], weights[own].sum(0)])
            sums[category] = sums[category] + added if category in sums else added
    sums[""] = torch.stack(list(sums.values())).sum(0)  # images without a category are counted here alone
    means = {category: total / weight for category, (total, weight) in sums.items()}
    return {category: _interval(mean) for category, mean in means.items()}


def _interval(replicates: Tensor) -> Estimate:
    """The first is the estimate, the rest are replicates; those in which no image counts (0 / 0) are left out."""
    value, others = float(replicates[0]), replicates[1:]
    others = others[torch.isfinite(others)]
    return Estimate(value) if len(others) < 2 else Estimate(value, *quantile_interval(others))
