"""How a running stage is seen: a bar (or plain lines) with the time left, and a live log of steps."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 5.0
"""Where no terminal shows a bar, at most one line in this time."""

Step = TypeVar("Step")


class EventLog:
    """A JSONL file, emptied at its opening, one line a step: {step, total, metrics, time (Unix seconds)}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Append one step. A whole line in one write: a reader of the growing file never sees half of one."""
        entry = {"step": step, "total": total, "metrics": dict(metrics), "time": time.time()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def track(steps: Sequence[Step], label: str) -> Iterator[Step]:
    """Yield each step; show a bar on a terminal, else lines: `policy frozen s0 r1 8/24 33 % ETA 0:12`."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield from _lines(steps, label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield from bar.track(steps, total=len(steps), description=label)


def _lines(steps: Sequence[Step], label: str) -> Iterator[Step]:
    begin = shown = time.monotonic()
    for done, step in enumerate(steps, start=1):
        yield step
        now = time.monotonic()
        if now - shown >= LINE_SECONDS or done == len(steps):
            left = (now - begin) / done * (len(steps) - done)
            ending = f"in {clock(now - begin)}" if done == len(steps) else f"ETA {clock(left)}"
            print(
                f"{label} {done}/{len(steps)} {100 * done // len(steps)} % {ending}",
                file=sys.stderr,
                flush=True,
            )
            shown = now


def clock(seconds: float) -> str:
    """Seconds as m:ss, rounded up to whole ones."""
    whole = int(-(-seconds // 1))
    return f"{whole // 60}:{whole % 60:02d}"
