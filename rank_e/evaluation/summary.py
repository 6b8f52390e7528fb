"""Everything that a stream has gathered, as nested metrics: {metric: {"value", "low", "high", "categories"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rank_e.evaluation.base import EvaluationError
from rank_e.evaluation.estimates import SHARDS, Estimate, frechet_estimate, mean_estimates
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.stream import ImageStream

Nested = dict[str, dict[str, Any]]
"""Metric -> its value, its 95 % interval (low, high) where there is one, and the same by category where there are."""


def nested(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """One metric: the estimate of all under "", those of the categories under their names."""
    categories = {name: estimate.nested() for name, estimate in estimates.items() if name}
    return {**estimates[""].nested(), **({"categories": categories} if categories else {})}


def summarise(
    stream: ImageStream,
    references: Mapping[str, Statistics],
    *,
    seed: int,
    resamples: int,
    device: torch.device | None = None,
) -> Nested:
    """Every metric of a finished stream, with 95 % intervals if `resamples` > 0.

    Features give the Frechet distance to `references` (which must hold each, of the same protocol and weights), scores
    their mean, of all images and of each category. Compare Frechet distances at equal numbers of images only.
    EvaluationError for a missing or another network's reference.
    """
    metrics: Nested = {}
    shards = min(SHARDS, stream.done // 2)
    for name, network in stream.features.items():
        if name not in references:
            raise EvaluationError(f"{name}: no reference statistics; compute them from real images first")
        found = references[name].provenance
        if (found.protocol, found.sha256) != (network.protocol, network.sha256):
            raise EvaluationError(
                f"{name}: the reference is of {found.protocol!r} or of other weights; compute it again"
            )
        estimate = frechet_estimate(
            stream, name, references[name].moments, seed=seed, resamples=resamples, shards=shards, device=device
        )
        metrics[name] = estimate.nested()
    for name in stream.scores:
        metrics[name] = nested(mean_estimates(stream, name, seed=seed, resamples=resamples))
    return metrics


def without_intervals(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested metrics without "low" and "high", at every depth."""

    def values(entry: Mapping[str, Any]) -> dict[str, Any]:
        categories = {name: values(own) for name, own in entry.get("categories", {}).items()}
        return {"value": entry["value"], **({"categories": categories} if categories else {})}

    return {name: values(entry) for name, entry in metrics.items()}
