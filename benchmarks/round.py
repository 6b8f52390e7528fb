"""What a run costs beyond its arithmetic: seconds of every kind of stage by phase, in a fresh copy of the project.

    python -m benchmarks.round [--profile tiny] [--jobs 1]
    python -m benchmarks.round --project FOLDER [--arm coevolved]   # as it is there: benchmarks.published_project

Of each stage: outside (DVC, process start, hashing by DVC: its turn's wall clock less its process), load (imports,
reading, building, to the device), work (its loops), state (mid-stage states), save (writing, hashing and syncing the
artifact), wait (for a twin in another arm). overhead: the share of all that is not work. Writes
benchmarks/results/round-<profile>-<date>.json, or round-<folder>-<date>.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.demo import copy_project, measure
from benchmarks.measuring import RESULTS, commit, machine

PARTS = ("outside", "load", "work", "state", "save", "wait")


def by_phase(workspace: Path, stages: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each kind of stage, how many ran and the median seconds of each part."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in stages:
        usage = workspace / ".rank-e" / "usage" / f"{row['label'].replace(' ', '-')}.json"
        if row["outcome"] == "ran" and usage.exists():
            used = json.loads(usage.read_text(encoding="utf-8"))
            outside = max(0.0, row["seconds"] - used["seconds"])
            found[row["stage"].partition("@")[0]].append({"outside": outside, **used["phases"]})
    return {
        name: {"count": len(rows), **{part: round(median(row[part] for row in rows), 3) for part in PARTS}}
        for name, rows in found.items()
    }


def main() -> None:
    """Run once, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--profile", default="tiny", help="a name from profiles/")
    parser.add_argument("--project", type=Path, help="a folder that has everything a run needs, and no artifacts")
    parser.add_argument("--arm", help="this one alone")
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    arguments = ["--jobs", given.jobs, "--no-track", *(["--arm", given.arm] if given.arm else [])]
    with tempfile.TemporaryDirectory(prefix="rank-e-round-") as temporary:
        folder, profile = (Path(temporary), given.profile) if given.project is None else (given.project.resolve(), None)
        if profile is not None:
            copy_project(folder)
        result = measure(folder, profile, arguments)
        table = by_phase(folder, result["stages"])
    whole = sum(row["count"] * sum(row[part] for part in PARTS) for row in table.values())
    work = sum(row["count"] * row["work"] for row in table.values())
    moment = datetime.now(UTC)
    report = {
        "date": moment.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
        "profile": profile or folder.name,
        "jobs": int(given.jobs),
        "wall_seconds": result["wall_seconds"],
        "overhead": round(1 - work / whole, 3),
        "median_seconds": table,
    }
    path = given.output / f"round-{profile or folder.name}-{moment:%Y-%m-%d}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{'stage':<16}{'count':>6}" + "".join(f"{part:>10}" for part in PARTS))
    for name, row in table.items():
        print(f"{name:<16}{row['count']:>6}" + "".join(f"{row[part]:>10.2f}" for part in PARTS))
    print(f"{report['overhead']:.0%} of the stages' time is not their loops; {path}")


if __name__ == "__main__":
    main()
