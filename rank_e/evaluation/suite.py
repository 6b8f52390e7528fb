"""A suite of metrics by name from params: networks whose features give distances, and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rank_e.evaluation.base import EvaluationError, FeatureNetwork, Scorer
from rank_e.evaluation.diversity import DIVERSITY, diversity_metric
from rank_e.evaluation.matched import matched_key, matched_metric
from rank_e.evaluation.metric import Metric
from rank_e.io.plugins import call_factory

if TYPE_CHECKING:
    from rank_e.config.evaluation import MatchedParams
    from rank_e.config.kinds import Kind


@dataclass(frozen=True)
class Suite:
    """Feature networks (for Frechet distances) and scorers by the name of their metric.

    `matched` and `diversity` (a distance's name) are made of them, None: they are not.
    """

    features: dict[str, FeatureNetwork]
    scores: dict[str, Scorer]
    matched: MatchedParams | None = None
    diversity: str | None = None

    @property
    def matched_distances(self) -> list[str]:
        """The distances whose matched ones are measured too."""
        return self.matched.distances if self.matched is not None else []

    def described(self) -> list[dict[str, Any]]:
        """What each metric says of itself, in order, as JSON holds it."""
        found = [item.metric.described(name, "distance") for name, item in self.features.items()]
        if self.matched is not None:
            right = self.scores[self.matched.score].metric.name
            for name in self.matched_distances:
                metric = matched_metric(self.features[name].metric, right)
                found.append(metric.described(matched_key(name), "distance"))
        found += [item.metric.described(name, "score") for name, item in self.scores.items()]
        if self.diversity is not None:
            found.append(diversity_metric(self.features[self.diversity].metric).described(DIVERSITY, "score"))
        return found


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
