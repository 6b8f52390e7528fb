"""Numbers of the artifacts as MLflow's points: same artifact, same points, down to the timestamp."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Metric

EPOCH = 1_700_000_000_000
"""Timestamp in ms of step 0. Fixed: MLflow keeps a point once for each key, step, value and timestamp."""

FORBIDDEN = re.compile(r"[^\w\-.: ]")
LONGEST = 250
"""Characters of a metric's name in MLflow."""


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested parameters as dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def points(prefix: str, metrics: dict[str, Any], step: int) -> list[Metric]:
    """Numbers and nested metrics as points at `step`: `fd`, `fd_low`, `accuracy/colors`, `original/fd`."""
    return [Metric(allowed(prefix + key), float(value), EPOCH + step, step) for key, value in _numbers(metrics)]


def _numbers(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Each number with its name: of a metric's value its own, of an interval's ends `_low` and `_high`."""
    for name, entry in metrics.items():
        key = f"{prefix}{name}"
        if not isinstance(entry, dict):
            yield key, entry
        elif "value" in entry:
            yield key, entry["value"]
            yield from ((f"{key}_{bound}", entry[bound]) for bound in ("low", "high") if bound in entry)
            yield from _numbers(entry.get("categories", {}), f"{key}/")
        else:  # the same tokens through the original decoder
            yield from _numbers(entry, f"{key}/")


def allowed(name: str) -> str:
    """`name` as MLflow takes it: words, digits, `_ - . : /` and spaces, a path in its shortest form, not too long.

    A prompt category may be named anything. A name that must change ends in a hash of what it was, so that two names
    never become one.
    """
    parts = [FORBIDDEN.sub("_", part) for part in name.split("/")]
    path = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if path == name and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{path[: LONGEST - 9].rstrip('/')} {digest}"


def curve(stage: str, table: pd.DataFrame) -> list[Metric]:
    """A stage's log (columns `step` and its metrics) as points named stage/metric."""
    rows: list[dict[str, Any]] = table.to_dict("records")
    return [point for row in rows for point in _step(stage, int(row["step"]), row)]


def _step(stage: str, step: int, values: dict[str, Any]) -> list[Metric]:
    return points(f"{stage}/", {k: v for k, v in values.items() if k != "step" and v == v}, step)


def live_points(stage: str, path: Path, start: int) -> tuple[list[Metric], int]:
    """The points of an event log from line `start` on, and how many whole lines it has now."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:  # the stage has just begun anew
        return [], 0
    lines = text.split("\n")[:-1]  # the last line may still be being written
    events = [json.loads(line) for line in lines[start:]]
    return [point for event in events for point in _step(stage, event["step"], event["metrics"])], len(lines)
