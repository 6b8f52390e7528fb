"""Numbers and parameters of the artifacts in MLflow's words: same artifact, same points.

MLflow's page shows charts in sections, by what stands before the slash, in the order of the alphabet, and those without
a slash last. So the sections are numbered: the headline comes first.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Metric

from stages.runtime.recorded import flatten

HEADLINE, TRAINING, ORIGINAL = "1 headline", "2 training", "3 original decoder"
DETAILS, CATEGORIES = "4 details", "5 categories"
FORBIDDEN = re.compile(r"[^\w\-.: /]")
LONGEST = 250
"""Characters of the name of a metric or parameter in MLflow."""
LONGEST_VALUE = 500
"""Characters of a parameter's value that are shown: MLflow cuts longer ones itself, some servers at this length."""
Rows = list[dict[str, Any]]


def plain_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested parameters by dotted names, as MLflow keeps them: a value that is too long ends in a hash of the whole."""
    return {allowed(name): _cut(str(value)) for name, value in flatten(params)}


def _cut(value: str) -> str:
    if len(value) <= LONGEST_VALUE:
        return value
    ending = f"... ({len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()[:16]})"
    return value[: LONGEST_VALUE - len(ending)] + ending


def evaluation_points(metrics: Mapping[str, Any], step: int, time: int) -> list[Metric]:
    """An evaluation's numbers at `step`: values, ends of intervals, categories; time: ms."""
    return [Metric(allowed(name), float(value), time, step) for name, value in _evaluated(metrics)]


def _evaluated(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Each number with its name, such as `1 headline/fd`, `4 details/fd_low` or `5 categories/accuracy/colors`."""
    for name, entry in metrics.items():
        if not isinstance(entry, Mapping):
            yield f"{DETAILS}/{name}", entry
        elif "value" in entry:
            yield f"{HEADLINE}/{name}", entry["value"]
            yield from _around(name, entry)
        else:  # the same tokens through the original decoder
            for key, inner in entry.items():
                yield f"{ORIGINAL}/{key}", inner["value"]
                yield from _around(f"{name}/{key}", inner)


def _around(name: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What lies around a value: its interval's ends, and its categories with theirs."""
    yield from ((f"{DETAILS}/{name}_{bound}", entry[bound]) for bound in ("low", "high") if bound in entry)
    for category, inner in entry.get("categories", {}).items():
        yield f"{CATEGORIES}/{name}/{category}", inner["value"]
        ends = ((bound, inner[bound]) for bound in ("low", "high") if bound in inner)
        yield from ((f"{CATEGORIES}/{name}/{category}_{bound}", value) for bound, value in ends)


def round_points(stage: str, metrics: Mapping[str, float], step: int, time: int) -> list[Metric]:
    """A training stage's metrics of a whole round, at the round's number."""
    return [Metric(allowed(f"{TRAINING}/{stage}/round/{k}"), float(v), time, step) for k, v in metrics.items()]


def curve(stage: str, rows: Rows, times: Mapping[int, int], time: int) -> list[Metric]:
    """A stage's log (rows of `step` and its metrics) as points; times: ms by step where known, else `time`."""
    return [
        Metric(allowed(f"{TRAINING}/{stage}/{name}"), float(value), times.get(int(row["step"]), time), int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name != "step" and value == value
    ]


def log_rows(table: pd.DataFrame) -> Rows:
    """The rows of a log, without what it has no value for."""
    rows: Rows = table.to_dict("records")
    return [{name: value for name, value in row.items() if value == value} for row in rows]


def event_rows(path: Path) -> tuple[Rows, dict[int, int]]:
    """The steps of an event log, and when each was logged (ms); none where a stage has just begun anew."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [], {}
    events = [json.loads(line) for line in text.split("\n")[:-1]]  # the last line may still be being written
    rows = [{"step": event["step"], **event["metrics"]} for event in events]
    return rows, {event["step"]: int(1000 * event["time"]) for event in events}


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
