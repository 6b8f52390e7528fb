"""Long campaigns against a small real run: what is damaged is never believed, what is killed ends in the same bytes.

    python -m benchmarks.faults corruptions [--count 800] [--only artifact]
    python -m benchmarks.faults kills [--count 100] [--only "dvc repro"]

Both work in a folder of their own, where a run of the tiny profile with two seeds is made first. A campaign that is
stopped goes on after its last trial; `--only` leaves out the trials of other targets, or of other commands and victims.
Writes benchmarks/results/faults-<campaign>-<date>.json, counts by kind and outcome; exit status 1 if any trial ended as
none may.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.demo import ROOT, machine
from benchmarks.faults_corruptions import Corruptions
from benchmarks.faults_kills import Kills
from benchmarks.faults_workspace import Journal, Work
from benchmarks.measuring import commit

COUNTS = {"corruptions": 800, "kills": 100}
GOOD = ("named", "recomputed", "unchanged", "same bytes", "over before")
"""How a trial may end."""


def counted(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many trials of each kind ended in which way."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(", ".join(str(row[key]) for key in keys), Counter())[row["outcome"]] += 1
    return {kind: dict(sorted(outcomes.items())) for kind, outcomes in sorted(found.items())}


def result(campaign: str, seed: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is shipped of a campaign."""
    keys = {"corruptions": ("target", "damage", "by"), "kills": ("by", "victim", "signal")}[campaign]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "seed": seed,
        "trials": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "outcomes": dict(sorted(Counter(row["outcome"] for row in rows).items())),
        "by_kind": counted(rows, keys),
        "wrong": [row for row in rows if row["outcome"] not in GOOD],
    }


def main() -> None:
    """Go through the trials that are left, write the counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    parser.add_argument("campaign", choices=COUNTS)
    parser.add_argument("--count", type=int, help="trials, earlier ones included (800 corruptions, 100 kills)")
    parser.add_argument("--only", help="a target (corruptions), or a command or victim (kills)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / ".rank-e" / "faults")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception: it ends the command under way too
    work = Work(given.work)
    trials = {"corruptions": Corruptions, "kills": Kills}[given.campaign](work, given.seed)
    journal = Journal(work.folder / f"{given.campaign}-{given.seed}.jsonl")
    count = COUNTS[given.campaign] if given.count is None else given.count
    journal.go_through(
        [number for number in range(count) if given.only is None or given.only in trials.about(number)], trials.trial
    )
    found = result(given.campaign, given.seed, journal.rows)
    path = given.output / f"faults-{given.campaign}-{found['date'][:10]}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{path}: {found['outcomes']} in {found['seconds']:.0f} s")
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
