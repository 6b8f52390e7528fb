"""Kills at random moments of a run that has a round to do: it ends in the same bytes, and leaves nothing behind.

A stage, the warm process or the command itself gets SIGKILL or SIGTERM; then the same command runs to the end. What
counts: the artifacts' bytes, processes that outlive the command, points of MLflow that are there twice or differ.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults_workspace import COMMANDS, MARK, PATIENCE, Work, command, digests, forget, graph, start

VICTIMS = {"dvc repro": ("stage", "command"), "rank-e run": ("stage", "warm", "command")}
SIGNALS = ("SIGKILL", "SIGTERM")

GRACE = 30.0
"""Seconds after a command's end in which everything that it started has to end too."""
MOMENT = 0.1
"""Seconds between two looks for the victim."""
COSTS = ("seconds", "peak_rss_mb", "peak_gpu_mb")
"""Ends of the names of metrics whose values no two runs have alike."""
TRACK = ["-m", "pipeline.cli", "track"]
POINTS = """
select tag.value, metric.key, metric.step, metric.value from metrics as metric
join tags as tag on tag.run_uuid = metric.run_uuid and tag.key = 'rank_e.round_key'
join tags as state on state.run_uuid = metric.run_uuid and state.key = 'rank_e.state'
where state.value = 'current' and metric.key not like 'system/%' order by 1, 2, 3, 4
"""


class Kills:
    """The campaign's trials, each decided by its number and the seed."""

    def __init__(self, work: Work, seed: int) -> None:
        self.work, self.seed = work, seed
        stages = graph(work.finished)
        self.outs = [
            out
            for name, entry in stages.items()
            for out in entry["outs"]
            if name == "report" or out.startswith("artifacts/coevolved/s0/r2/")
        ]
        self.points = points(work.finished)
        self.lasts: dict[str, float] = {}

    def drawn(self, number: int) -> tuple[random.Random, str, str, str]:
        """The command, the victim and the signal of a trial."""
        draw = random.Random(f"{self.seed}/{number}")
        by = list(COMMANDS)[number % 2]
        return draw, by, draw.choice(VICTIMS[by]), draw.choice(SIGNALS)

    def about(self, number: int) -> tuple[str, ...]:
        """What `--only` may name."""
        return self.drawn(number)[1:]

    def begin(self) -> Path:
        """A project in which one round is to be done, and MLflow has seen nothing."""
        root = self.work.copy(self.work.trial)
        forget(root, self.outs)
        (root / "mlflow.db").unlink()
        return root

    def undisturbed(self, by: str) -> float:
        """Seconds that the command takes when nothing is killed."""
        if by not in self.lasts:
            root, began = self.begin(), time.monotonic()
            command(root, COMMANDS[by])
            self.lasts[by] = time.monotonic() - began
        return self.lasts[by]

    def trial(self, number: int) -> dict[str, Any]:
        """Kill once, run to the end, compare."""
        draw, by, victim, name = self.drawn(number)
        moment = draw.uniform(0.02, 0.95) * self.undisturbed(by)
        row = {"by": by, "victim": victim, "signal": name, "moment": round(moment, 2)}
        mark = f"{self.work.folder}/{number}"
        root = self.begin()
        process = start(root, COMMANDS[by], root.parent / "killed.log", mark)
        killed = kill(process.pid, mark, victim, getattr(signal, name), moment)
        began, hangs = time.monotonic(), False
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            hangs = True
        left = orphans(mark)
        for orphan in left:
            orphan.kill()
        ending = command(root, COMMANDS[by], mark)
        tracked = command(root, TRACK, mark)
        left += orphans(mark)
        faults = [
            *(["hangs"] if hangs else []),
            *([f"orphans: {', '.join(' '.join(words_of(item))[:80] for item in left)}"] if left else []),
            *([f"the next run ended with {ending.status}: {ending.output[-300:]}"] if ending.status != 0 else []),
            *([f"tracking ended with {tracked.status}: {tracked.output[-300:]}"] if tracked.status != 0 else []),
            *(["other bytes"] if digests(root) != self.work.golden else []),
            *self.points_problems(root),
        ]
        outcome = "; ".join(fault.partition(":")[0] for fault in faults) or ("same bytes" if killed else "over before")
        return {**row, "after": round(time.monotonic() - began, 1), "outcome": outcome, "line": "; ".join(faults)}

    def points_problems(self, root: Path) -> list[str]:
        """Points that are there twice, and those that an undisturbed run has not, or has alone."""
        found = points(root)
        doubled = len(found) - len({row[:3] for row in found})
        other = set(found) ^ set(self.points)
        said = [f"doubled points: {doubled}"] if doubled else []
        return said + ([f"other points: {len(other)}, first {min(other)}"] if other else [])


def points(root: Path) -> list[tuple[str, str, int, float]]:
    """(run, metric, step, value) of every point of the current runs in an MLflow store; costs without value.

    Samples of the machine are left out: how many there are is a matter of seconds.
    """
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as store:
        rows = list(store.execute(POINTS))
    return [(run, key, step, 0.0 if key.endswith(COSTS) else value) for run, key, step, value in rows]


def marked(mark: str) -> list[psutil.Process]:
    """The living processes of a trial."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def orphans(mark: str) -> list[psutil.Process]:
    """What still lives when it had its time to end."""
    deadline = time.monotonic() + GRACE
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(MOMENT)
    return left


def words_of(process: psutil.Process) -> list[str]:
    """A process's command line; nothing where it is gone."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def kill(pid: int, mark: str, victim: str, number: signal.Signals, moment: float) -> bool:
    """Wait until the moment, then until there is such a victim; False where the command ended first."""
    deadline = time.monotonic() + moment
    command_itself = psutil.Process(pid)
    while command_itself.is_running() and command_itself.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() >= deadline and (found := [p for p in marked(mark) if role(p, pid) == victim]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[0].pid, number)
                return True
        time.sleep(MOMENT)
    return False


def role(process: psutil.Process, pid: int) -> str:
    """What a process of a run is: the command, the warm process, a stage, or one of the others."""
    if process.pid == pid:
        return "command"
    words = words_of(process)
    with contextlib.suppress(psutil.Error):
        parent = words_of(psutil.Process(process.ppid()))
        if "stages.runtime.server" in words:  # a stage is a fork of it
            return "stage" if "stages.runtime.server" in parent else "warm"
        if words[1:3] == ["-m", "stages"] and "RANK_E_WARM" not in process.environ():
            return "stage"
    return "other"
