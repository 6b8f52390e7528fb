"""Judges by name from params, and everything a stream has gathered as one flat dict of metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rank_e.judges.base import FeatureNetwork, JudgeError, Scorer
from rank_e.judges.features import clip_features, dinov2_features, inception_features
from rank_e.judges.intervals import SHARDS, frechet_estimate, mean_estimates
from rank_e.judges.reference import Statistics
from rank_e.judges.scores import clip_score
from rank_e.judges.stream import Stream

FEATURES: dict[str, Callable[..., FeatureNetwork]] = {
    "inception": inception_features,
    "dinov2": dinov2_features,
    "clip_features": clip_features,
}
SCORES: dict[str, Callable[..., Scorer]] = {"clip_score": clip_score}
_OPTIONS = {"clip_features": ("model", "image_size"), "clip_score": ("model", "image_size")}


@dataclass(frozen=True)
class Judges:
    """Feature networks and scorers by name, as a `Stream` takes them."""

    features: dict[str, FeatureNetwork]
    scores: dict[str, Scorer]


def build_judges(settings: Mapping[str, Mapping[str, Any]], device: torch.device) -> Judges:
    """Judges of `{NAME: {kind: inception | dinov2 | clip_features | clip_score, file: PATH, ...}}`.

    `file` is a folder for dinov2. Further keys: image_size (256), and model for the CLIP kinds (ViT-B-32-quickgelu).
    JudgeError (or CheckpointError, of a file's contents) names the judge and the key.
    """
    judges = Judges({}, {})
    for name, options in settings.items():
        where, rest = f"judges.{name}", dict(options)
        kind, file = rest.pop("kind", None), rest.pop("file", None)
        if kind not in FEATURES and kind not in SCORES:
            raise JudgeError(f"{where}.kind: unknown judge {kind!r}; known: {', '.join((*FEATURES, *SCORES))}")
        if file is None:
            raise JudgeError(f"{where}.file: missing; name the local weights")
        if unknown := sorted(rest.keys() - set(_OPTIONS.get(kind, ("image_size",)))):
            raise JudgeError(f"{where}.{unknown[0]}: no such option of {kind}; remove it")
        if kind in FEATURES:
            judges.features[name] = FEATURES[kind](file, device, where=f"{where}.file", **rest)
        else:
            judges.scores[name] = SCORES[kind](file, device, where=f"{where}.file", **rest)
    return judges


def summarise(
    stream: Stream,
    references: Mapping[str, Statistics],
    *,
    seed: int,
    resamples: int,
    columns: Collection[str] = (),
    shards: int = SHARDS,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Every metric of a finished stream, with `<key>_low` and `<key>_high` (95 %) if `resamples` > 0.

    Features give the Frechet distance to `references` (which must hold each, of the same protocol and weights).
    Scores and further `columns` give `<name>`, the mean over categories of their means, and `<name>/<category>` where
    categories were named. `pictures` is their number: compare Frechet distances at equal numbers only.
    """
    metrics: dict[str, float] = {"pictures": float(stream.done)}
    for name, network in stream.features.items():
        if name not in references:
            raise JudgeError(f"{name}: no reference statistics; compute them from real pictures first")
        found = references[name].provenance
        if (found.protocol, found.source) != (network.protocol, network.source):
            raise JudgeError(f"{name}: the reference is of {found.protocol!r} or of other weights; compute it again")
        estimate = frechet_estimate(
            stream, name, references[name].moments, seed=seed, resamples=resamples, shards=shards, device=device
        )
        metrics |= estimate.entries(name)
    for name in (*stream.scores, *columns):
        for category, estimate in mean_estimates(stream, name, seed=seed, resamples=resamples).items():
            metrics |= estimate.entries(f"{name}/{category}" if category else name)
    return metrics
