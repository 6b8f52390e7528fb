"""Lines of a run: metrics over its rounds, a score against a distance, and what the updates logged step by step."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rank_e.config import Params
from stages.report.data import Results, mean
from stages.report.figures import Line, Point, path_chart
from stages.report.metrics import Column
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import artifact_path

POINTS = 100
"""Points of a line over steps at most: longer logs are shown by the means of equal parts."""
UPDATES = ("policy", "decoder")
Logs = dict[tuple[str, str], list[Line]]
"""(stage, column of its log): a line for each arm and seed, and for several seeds each arm's mean."""


def by_round(results: Results, metric: Column) -> list[Line]:
    """Each seed's line and each arm's mean, from its start at round 0."""
    lines = []
    rounds = [0, *results.rounds]
    for arm in results.arms:
        for seed in results.seeds:
            values = [(item, results.value(arm, seed, item, metric.key)) for item in rounds]
            points = [(float(item), value) for item, value in values if value is not None]
            lines.append(Line(arm, points, False, f"{arm} s{seed}"))
        means = [(item, mean(results.by_seed(arm, item, metric.key))) for item in rounds]
        lines.append(Line(arm, [(float(item), v) for item, v in means if v is not None], True, f"{arm}, mean"))
    return lines


def training_lines(results: Results) -> list[Line]:
    """The mean reward of the rollouts that each round trained on."""
    lines = []
    for arm in results.arms:
        found = {
            seed: [
                (float(item), results.training[arm, seed, item]["reward_mean"])
                for item in results.rounds
                if (arm, seed, item) in results.training
            ]
            for seed in results.seeds
        }
        lines += [Line(arm, points, False, f"{arm} s{seed}") for seed, points in found.items()]
        rounds = sorted({x for points in found.values() for x, _ in points})
        centre = [(x, mean([dict(points)[x] for points in found.values() if x in dict(points)])) for x in rounds]
        lines.append(Line(arm, [(x, value) for x, value in centre if value is not None], True, f"{arm}, mean"))
    return lines


def pareto(results: Results, distance: Column) -> str:
    """The first score that has a better way against a distance, round by round; the reward is the last of them."""
    score = next(metric for metric in results.metrics if metric.group == "score" and metric.better != "nearer")
    horizontal, vertical = by_round(results, score), by_round(results, distance)
    lines = []
    for a, b in zip(horizontal, vertical, strict=True):
        scores, distances = dict(a.points), dict(b.points)
        rounds = [x for x in distances if x in scores]
        points = [(scores[x], distances[x]) for x in rounds]
        lines.append(Line(a.name, points, a.strong, a.label, [int(x) for x in rounds]))
    title = f"{score.name} against {distance.name}"
    return path_chart(title, score.name, distance.name, lines, results.start, score.percent)


def update_logs(params: Params, project: Path) -> tuple[Logs, list[str]]:
    """What each update logged, and the rounds' artifacts that are not there (their weights may have been removed)."""
    found: Logs = {}
    absent: list[str] = []
    for stage in UPDATES:
        for arm in params.arms:
            tables = {}
            for seed in params.seeds:
                folders = [artifact_path(stage, arm, seed, item.id) for item in params.rounds]
                absent += [str(folder) for folder in folders if not (project / folder).exists()]
                kept = [project / folder for folder in folders if (project / folder).exists()]
                logs = [read_artifact(folder, stage).table("log") for folder in kept]
                if filled := [log for log in logs if len(log)]:  # an arm that trains no decoder logs nothing
                    tables[seed] = pd.concat(filled, ignore_index=True)
            for column in dict.fromkeys(name for table in tables.values() for name in table.columns if name != "step"):
                found.setdefault((stage, str(column)), []).extend(_log_lines(arm, tables, str(column)))
    return found, absent


def _log_lines(arm: str, tables: dict[int, pd.DataFrame], column: str) -> list[Line]:
    """One column of an arm's logs: each seed's line, and the mean of those steps that all seeds have."""
    rows = {seed: table.set_index("step")[column].dropna() for seed, table in tables.items() if column in table}
    if len(rows) == 1:
        return [Line(arm, _thinned(row), True, f"{arm} s{seed}") for seed, row in rows.items()]
    lines = [Line(arm, _thinned(row), False, f"{arm} s{seed}") for seed, row in rows.items()]
    return [*lines, Line(arm, _thinned(pd.concat(rows, axis=1, join="inner").mean(axis=1)), True, f"{arm}, mean")]


def _thinned(row: "pd.Series[float]") -> Sequence[Point]:
    """At most POINTS points: the means of equal parts of the steps, the last of which may be shorter."""
    steps, values, size = row.index.to_numpy(float), row.to_numpy(float), math.ceil(len(row) / POINTS)
    parts = [slice(begin, begin + size) for begin in range(0, len(row), size or 1)]
    return [(float(steps[part].mean()), float(values[part].mean())) for part in parts]
