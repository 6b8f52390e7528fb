"""A suite of metrics by name from params: networks whose features give distances, and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rank_e.evaluation.base import EvaluationError, FeatureNetwork, Scorer
from rank_e.evaluation.metric import Metric
from rank_e.io.plugins import call_factory

if TYPE_CHECKING:
    from rank_e.config.kinds import Kind


@dataclass(frozen=True)
class Suite:
    """Feature networks (for Frechet distances) and scorers by the name of their metric."""

    features: dict[str, FeatureNetwork]
    scores: dict[str, Scorer]

    def described(self) -> list[dict[str, Any]]:
        """What each metric says of itself, in order, as JSON holds it."""
        features = [item.metric.described(name, "distance") for name, item in self.features.items()]
        return features + [item.metric.described(name, "score") for name, item in self.scores.items()]


def build_suite(
    distances: Mapping[str, Kind],
    scores: Mapping[str, Kind],
    folder: Path,
    device: torch.device,
    where: str = "evaluation",
) -> Suite:
    """Metrics by name, each of one of `rank_e.config.kinds.DistanceParams` or `ScoreParams`; files within `folder`.

    The user's own factory(folder, device, **keys) gives a `FeatureNetwork` or a `Scorer`. EvaluationError names the
    entry and what is wrong with it.
    """

    def build(group: str, sections: Mapping[str, Kind]) -> dict[str, Any]:
        return {name: _made(f"{where}.{group}.{name}", item, folder, device) for name, item in sections.items()}

    return Suite(build("distances", distances), build("scores", scores))


def _made(where: str, kind: Kind, folder: Path, device: torch.device) -> Any:
    """What the factory gives; EvaluationError where it does not say what it measures, how and with which weights."""
    made = call_factory(where, kind.path, folder, device, kind.options, EvaluationError)
    for key, wanted in (("metric", Metric), ("protocol", str), ("sha256", str)):
        if not isinstance(getattr(made, key, None), wanted):
            fix = f"give it the attribute {key}, a {wanted.__name__}"
            raise EvaluationError(f"{where}: what {kind.path} gives has no {key}; {fix}")
    return made
