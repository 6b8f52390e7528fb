"""Sections of `params.yaml` that name things by their kind, from plain mappings."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from rank_e.config.kinds import DistanceParams, Kind, RewardKind, RewardParams, ScoreParams

Settings = Mapping[str, Mapping[str, Any]]


def rewards(settings: Settings) -> dict[str, RewardKind]:
    """Rewards of weight 1 that are not normalised, where nothing else is said."""
    plain = {"weight": 1.0, "normalise": "none"}
    return TypeAdapter(dict[str, RewardParams]).validate_python({name: plain | dict(s) for name, s in settings.items()})


def distances(settings: Settings) -> dict[str, Kind]:
    return TypeAdapter(dict[str, DistanceParams]).validate_python(dict(settings))


def scores(settings: Settings) -> dict[str, Kind]:
    return TypeAdapter(dict[str, ScoreParams]).validate_python(dict(settings))
