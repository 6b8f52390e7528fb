"""A suite of metrics by name from params: networks whose features give distances, and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rank_e.evaluation.base import EvaluationError, FeatureNetwork, Scorer
from rank_e.evaluation.features import clip_features, dinov2_features, inception_features
from rank_e.evaluation.metric import Metric
from rank_e.evaluation.scores import clip_score
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
class Suite:
    """Feature networks (for Frechet distances) and scorers by the name of their metric.

    EvaluationError for one that does not say what it measures, by which protocol, with which weights.
    """

    features: dict[str, FeatureNetwork]
    scores: dict[str, Scorer]

    def __post_init__(self) -> None:
        for name, item in (*self.features.items(), *self.scores.items()):
            known = {"metric": Metric, "protocol": str, "sha256": str}
            if wrong := [key for key, kind in known.items() if not isinstance(getattr(item, key, None), kind)]:
                raise EvaluationError(
                    f"metric {name}: what its factory in evaluation gives has no {wrong[0]}; give it the attributes "
                    "metric (a rank_e.evaluation.metric.Metric), protocol and sha256 (both text)"
                )

    def described(self) -> list[dict[str, Any]]:
        """What each metric says of itself, in order, as JSON holds it."""
        features = [item.metric.described(name, "distance") for name, item in self.features.items()]
        return features + [item.metric.described(name, "score") for name, item in self.scores.items()]


def build_judges(
    distances: Settings, scores: Settings, folder: str | Path, device: torch.device, where: str = "evaluation"
) -> Suite:
    """Suite of `{NAME: {kind, file: PATH in folder, ...}}`, by name.

    Kinds of distances: inception, dinov2 (`file` is a folder), clip_features; of scores: clip_score. Further keys:
    image_size (256), and model for the CLIP kinds (ViT-B-32-quickgelu, or a JSON file in `folder`).
    `package.module:factory` is called with (folder, device, **further keys) and gives a `FeatureNetwork` or a
    `Scorer`. EvaluationError (or CheckpointError, of a file's contents) names the judge and the key.
    """
    place = Path(folder)
    return Suite(
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
