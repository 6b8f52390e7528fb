"""Everything that a stream has gathered, as nested metrics: {metric: {"value", "low", "high", "categories"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from rank_e.evaluation.base import EvaluationError
from rank_e.evaluation.diversity import DIVERSITY
from rank_e.evaluation.diversity import diversity as mean_diversity
from rank_e.evaluation.estimates import SHARDS, Estimate, frechet_estimate, mean_estimates
from rank_e.evaluation.matched import accepted_images, matched_distance, matched_key
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.stream import ImageStream

if TYPE_CHECKING:
    from rank_e.config.evaluation import MatchedParams

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
    matched: MatchedParams | None = None,
    diversity: str | None = None,
) -> Nested:
    """Every metric of a finished stream, with 95 % intervals if `resamples` > 0.

    Features give the Frechet distance to `references` (which must hold each, of the same protocol and weights), scores
    their mean, of all images and of each category. A distance says of how many images it is ("images") and to how many
    real ones ("real"): compare distances at equal numbers only. What cannot be told (too few accepted images for a
    matched distance, no caption with two images for diversity) is left out. EvaluationError for a missing or another
    network's reference.
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
        metrics[name] = {**estimate.nested(), "images": stream.done, "real": found.images}
    if matched is not None:
        metrics |= _matched(stream, matched, references, device)
    for name in stream.scores:
        metrics[name] = nested(mean_estimates(stream, name, seed=seed, resamples=resamples))
    if diversity is not None:
        value = mean_diversity(_prompts(stream), lambda: (part for _, part in stream.feature_rows(diversity)))
        metrics |= {} if value is None else {DIVERSITY: {"value": value}}
    return metrics


def _prompts(stream: ImageStream) -> list[str]:
    return [prompt for _, columns in stream.rows("prompt") for prompt in columns["prompt"].tolist()]


def _matched(
    stream: ImageStream, params: MatchedParams, references: Mapping[str, Statistics], device: torch.device | None
) -> Nested:
    """The matched distances, with the number of accepted images and of captions; none where they cannot be told."""
    scores = [value for _, columns in stream.rows(params.score) for value in columns[params.score].tolist()]
    if wrong := set(scores) - {0.0, 1.0}:
        raise EvaluationError(
            f"evaluation.matched.score = {params.score}: a value of {min(wrong):g}; name a score of 0 or 1"
        )
    metrics: Nested = {}
    for name in params.distances:
        real = references[name].captions
        if real is None:
            raise EvaluationError(f"{name}: the reference has no sums by caption to match; compute it again")
        found = accepted_images(_prompts(stream), torch.tensor(scores) > 0.5, params.least, real.captions)
        if found is not None:
            parts = (part for _, part in stream.feature_rows(name))
            value = matched_distance(parts, found.weights, real.moments(found.captions), device)
            metrics[matched_key(name)] = {"value": value, "images": found.images, "captions": len(found.captions)}
    return metrics


def without_intervals(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested metrics without "low" and "high", at every depth."""

    def values(entry: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: item for key, item in entry.items() if key not in ("low", "high")}
        if "categories" in kept:
            kept["categories"] = without_intervals(kept["categories"])
        return kept

    return {name: values(entry) for name, entry in metrics.items()}


def without_categories(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested metrics without intervals and categories: values, and the numbers of images behind distances."""
    return {
        name: {key: item for key, item in entry.items() if key != "categories"}
        for name, entry in without_intervals(metrics).items()
    }
