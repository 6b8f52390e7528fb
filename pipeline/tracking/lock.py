"""One tracker at a time: who copies a project's artifacts holds a lock of its own meanwhile.

It is not the lock of a run: `rank-e track` may copy beside one, whose own tracker then waits for its turn.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rank_e.errors import RankEError

PATIENCE = 60.0
"""Seconds that a tracker waits for another one's pass to end."""


class TrackingError(RankEError):
    """MLflow cannot be reached or refused, or another tracker is at work; training goes on without it."""


@contextmanager
def one_tracker(project: Path) -> Iterator[None]:
    """Hold .rank-e/locks/tracker.lock while the block runs; TrackingError if another keeps it for PATIENCE seconds."""
    path = project / ".rank-e" / "locks" / "tracker.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    with path.open("w") as file:  # its closing, also by our death, frees the lock
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TrackingError(f"another tracker holds {path}: wait for it, or end it") from None
                time.sleep(0.1)
        yield
