"""Where a stage's seconds go: loops, mid-stage states, writing the artifact, waiting for a twin; the rest is loading.

Loading is imports, reading, building networks and moving them to the device. A phase within another one stops the outer
one's clock, so that the phases add up to the whole.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal["work", "state", "save", "wait"]


class Phases:
    """Seconds by phase of one process."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A stage begins: nothing has been spent."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.monotonic()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """What passes within the block, less the phases inside it, is of this phase."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            if name in self._open:  # a loop that was left behind may end late
                self._open.remove(name)

    def _turn(self) -> None:
        """Give the time since the last change to the innermost open phase."""
        now = time.monotonic()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def table(self, whole: float) -> dict[str, float]:
        """Seconds by phase, loading included, of a stage that took `whole` seconds."""
        load = max(0.0, whole - sum(self.seconds.values()))
        return {"load": round(load, 3), **{name: round(self.seconds[name], 3) for name in get_args(Phase)}}


PHASES = Phases()
"""This process's."""
