"""Judges by name from params, and everything a stream has gathered as one flat dict of metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rank_e.evaluation.base import EvaluationError, FeatureNetwork, Scorer
from rank_e.evaluation.features import clip_features, dinov2_features, inception_features
from rank_e.evaluation.intervals import SHARDS, frechet_estimate, mean_estimates
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.scores import clip_score
from rank_e.evaluation.stream import Stream
from rank_e.io.plugins import call_factory, is_path
from rank_e.rewards.open_clip_models import model_within

FEATURES: dict[str, Callable[..., FeatureNetwork]] = {
    "inception": inception_features,
    "dinov2": dinov2_features,
    "clip_features": clip_features,
}
SCORES: dict[str, Callable[..., Scorer]] = {"clip_score": clip_score}
_OPTIONS = {"clip_features": ("model", "image_size"), "clip_score": ("model", "image_size")}
Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Judges:
    """Feature networks (for Frechet distances) and scorers by name, as a `Stream` takes them."""

    features: dict[str, FeatureNetwork]
    scores: dict[str, Scorer]


def build_judges(
    distances: Settings, scores: Settings, folder: str | Path, device: torch.device, where: str = "evaluation"
) -> Judges:
    """Judges of `{NAME: {kind, file: PATH in folder, ...}}`, by name.

    Kinds of distances: inception, dinov2 (`file` is a folder), clip_features; of scores: clip_score. Further keys:
    image_size (256), and model for the CLIP kinds (ViT-B-32-quickgelu, or a JSON file in `folder`).
    `package.module:factory` is called with (folder, device, **further keys) and gives a `FeatureNetwork` or a
    `Scorer`. EvaluationError (or CheckpointError, of a file's contents) names the judge and the key.
    """
    place = Path(folder)
    return Judges(
        {n: _build(FEATURES, f"{where}.distances.{n}", options, place, device) for n, options in distances.items()},
        {n: _build(SCORES, f"{where}.scores.{n}", options, place, device) for n, options in scores.items()},
    )


def _build(
    known: Mapping[str, Callable[..., Any]],
    where: str,
    options: Mapping[str, Any],
    folder: Path,
    device: torch.device,
) -> Any:
    rest = dict(options)
    kind = rest.pop("kind", None)
    if isinstance(kind, str) and is_path(kind):
        return call_factory(where, kind, folder, device, rest, EvaluationError)
    if kind not in known:
        raise EvaluationError(
            f"{where}.kind: unknown judge {kind!r}; known: {', '.join(known)}, or package.module:factory"
        )
    file = rest.pop("file", None)
    if not isinstance(file, str) or not file:
        raise EvaluationError(f"{where}.file: missing; name the local weights")
    if unknown := sorted(rest.keys() - set(_OPTIONS.get(kind, ("image_size",)))):
        raise EvaluationError(f"{where}.{unknown[0]}: no such option of {kind}; remove it")
    if "model" in rest:
        if not isinstance(rest["model"], str):
            raise EvaluationError(f"{where}.model: is {rest['model']!r}; give an open_clip name or a JSON file")
        rest["model"] = model_within(folder, rest["model"])
    return known[kind](folder / file, device, where=f"{where}.file", **rest)


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
