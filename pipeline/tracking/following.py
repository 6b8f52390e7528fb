"""Tracking beside a run: pass after pass until the run is over, and a last one that says what it could not copy."""

import time
from collections.abc import Callable

from pipeline.tracking.lock import TrackingError
from pipeline.tracking.machine import Machine
from pipeline.tracking.tracking import Tracker
from rank_e.errors import RankEError

TRIES = 2
"""Of the last pass."""
PAUSE = 1.0
"""Seconds between them."""


def follow(
    tracker_for: Callable[[], Tracker],
    stop: Callable[[float], bool],
    say: Callable[[str], None],
    every: float,
) -> None:
    """Copy until `stop(seconds to wait)` says so, then once more. What fails is said and tried again; TrackingError
    names what was not copied in the end.
    """
    tracker: Tracker | None = None
    machine, first = Machine(), True
    problem = said = ""
    left = TRIES + 1  # the last pass is the first try
    while left:
        try:
            tracker = tracker or tracker_for()
            tally = tracker.sync()
            if not first and left > TRIES:  # what an earlier run left is nobody's work now
                machine.watch(tracker.uri, tally.arms)
            first = False
            problem = said = ""
            if tally.created or tally.superseded or tally.said:
                say(str(tally))
        except (RankEError, OSError) as error:  # an artifact that is being replaced, or a server that is away
            problem = str(error).splitlines()[0]
            if problem != said:  # once, not every pass
                say(f"{problem} (trying again)")
            said = problem
            machine.end()
        if left <= TRIES:
            left -= 1
            if tracker is not None and not problem:
                tracker.finished()
                return
            time.sleep(PAUSE if left else 0)
        elif stop(every):
            machine.end()
            left = TRIES
    pending = ["everything"] if tracker is None else tracker.pending()
    raise TrackingError(f"not copied to MLflow: {', '.join(pending)} ({problem}); `rank-e track` copies it")
