"""Judges by name from params, and everything a stream has gathered as one flat dict of metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rank_e.evaluation.base import EvaluationError, FeatureNetwork, Scorer
from rank_e.evaluation.intervals import SHARDS, frechet_estimate, mean_estimates
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.stream import Stream
from rank_e.io.plugins import call_factory

if TYPE_CHECKING:
    from rank_e.config.kinds import Kind


@dataclass(frozen=True)
class Judges:
    """Feature networks (for Frechet distances) and scorers by name, as a `Stream` takes them."""

    features: dict[str, FeatureNetwork]
    scores: dict[str, Scorer]


def build_judges(
    distances: Mapping[str, Kind],
    scores: Mapping[str, Kind],
    folder: Path,
    device: torch.device,
    where: str = "evaluation",
) -> Judges:
    """Judges by name, each of one of `rank_e.config.kinds.DistanceParams` or `ScoreParams`; files within `folder`.

    The user's own factory(folder, device, **keys) gives a `FeatureNetwork` or a `Scorer`. EvaluationError names the
    entry and what is wrong with it.
    """

    def build(group: str, sections: Mapping[str, Kind]) -> dict[str, Any]:
        return {
            name: call_factory(f"{where}.{group}.{name}", item.path, folder, device, item.options, EvaluationError)
            for name, item in sections.items()
        }

    return Judges(build("distances", distances), build("scores", scores))


def summarise(
    stream: Stream,
    references: Mapping[str, Statistics],
    *,
    seed: int,
    resamples: int,
    columns: Collection[str] = (),
    device: torch.device | None = None,
) -> dict[str, float]:
    """Every metric of a finished stream, with `<key>_low` and `<key>_high` (95 %) if `resamples` > 0.

    Features give the Frechet distance to `references` (which must hold each, of the same protocol and weights).
    Scores and further `columns` give `<name>`, their mean, and `<name>/<category>` where categories were named.
    Compare Frechet distances at equal numbers of images only.
    """
    metrics: dict[str, float] = {}
    shards = min(SHARDS, stream.done // 2)
    for name, network in stream.features.items():
        if name not in references:
            raise EvaluationError(f"{name}: no reference statistics; compute them from real images first")
        found = references[name].provenance
        if (found.protocol, found.source) != (network.protocol, network.source):
            raise EvaluationError(
                f"{name}: the reference is of {found.protocol!r} or of other weights; compute it again"
            )
        estimate = frechet_estimate(
            stream, name, references[name].moments, seed=seed, resamples=resamples, shards=shards, device=device
        )
        metrics |= estimate.entries(name)
    for name in (*stream.scores, *columns):
        for category, estimate in mean_estimates(stream, name, seed=seed, resamples=resamples).items():
            metrics |= estimate.entries(f"{name}/{category}" if category else name)
    return metrics
