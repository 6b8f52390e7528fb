"""What the run took: seconds of each stage as this machine wrote them down (`.rank-e/usage`), and hours of a GPU.

Such a record is of the last time that the stage ran here, and counts for the artifact that came of it: a stage that
was killed counts from its last start; one whose artifact came from a cache or from another machine may have none, nor
has one whose record was cut off by a kill.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rank_e.config import Params
from stages.report.tables import data_table, escape, keyed, plain
from stages.runtime.stage import ARGUMENTS, WORK, Stage
from stages.runtime.usage import read_usage, spent

SHARED = "shared"
"""The column of stages that no arm has to itself."""
LEFT_OUT = ("code", "report")
"""Stages that compute nothing of the run; the report cannot know its own seconds."""


@dataclass(frozen=True)
class Cost:
    """One stage's time in seconds, and whether a GPU was used; `arm`: SHARED where it serves all."""

    stage: str
    arm: str
    seconds: float
    gpu: bool


def cells(params: Params) -> Iterator[Stage]:
    """Every cell of the run whose stage computes."""
    ids = [item.id for item in params.rounds]
    for name, given in ARGUMENTS.items():
        arms = params.factorial.arms if name == "factorial" else list(params.arms)
        rounds = params.evaluated if name in ("evaluation", "factorial") else ids
        for arm in arms if "arm" in given else [""]:
            for seed in params.seeds if "seed" in given else [0]:
                for item in rounds if "round" in given else [0]:
                    if name not in LEFT_OUT:
                        yield Stage(name, params, arm, seed, item)


def costs(params: Params, project: Path) -> tuple[list[Cost], int]:
    """The costs that were recorded, and of how many stages there could be one."""
    found, count = [], 0
    for stage in cells(params):
        count += 1
        usage = read_usage(project / WORK / "usage" / f"{stage.key}.json", "seconds")
        seconds = None if usage is None else spent(usage, project / stage.made)
        if usage is not None and seconds is not None:
            found.append(Cost(stage.name, stage.arm or SHARED, seconds, "peak_gpu_mb" in usage))
    return found, count


def costs_table(found: list[Cost], params: Params) -> str:
    """Seconds by stage, a column for each arm and one for what they share; then sums, and hours of a GPU if used."""
    columns = [SHARED, *params.arms]
    stages = [name for name in ARGUMENTS if any(cost.stage == name for cost in found)]

    def cell(rows: list[Cost]) -> str:
        return f"{sum(row.seconds for row in rows):,.1f}<small>{len(rows)} ×</small>" if rows else "–"

    def row(rows: list[Cost]) -> list[str]:
        return [*(cell([cost for cost in rows if cost.arm == name]) for name in columns), cell(rows)]

    def hours(rows: list[Cost]) -> list[str]:
        parts = [[cost for cost in rows if cost.arm == name] for name in columns]
        return [f"{sum(cost.seconds for cost in part) / 3600:.2f}" for part in (*parts, rows)]

    rows = [(escape(name), row([cost for cost in found if cost.stage == name])) for name in stages]
    rows.append(("all, in seconds", row(found)))
    if on_gpu := [cost for cost in found if cost.gpu]:
        rows.append(("GPU-hours", hours(on_gpu)))
    return data_table("seconds", [*plain(SHARED), *keyed(*params.arms), *plain("all")], rows)
