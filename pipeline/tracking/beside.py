"""The tracker beside a run: a process of its own, so that MLflow costs training nothing; it is not imported here."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TRACKING_LOG = Path(".rank-e") / "tracking.log"
"""What the copier beside a run has to say besides its lines: where it failed, its last line says why."""
PATIENCE = 300.0
"""Seconds that the end of a run waits for the last copy to MLflow; where a server is away, that ends far sooner."""
SILENCE = 3.0
"""Seconds of that wait before a line says what is waited for."""


@contextmanager
def tracker_beside(project: Path, wanted: bool) -> Iterator[list[str]]:
    """While the block runs, a tracker copies what the stages write; the list then holds what was not copied, in a line.

    Where the block fails, that line is said at once: the block's own error comes after it.
    """
    untracked: list[str] = []
    tracker = start_tracker(project) if wanted else None
    try:
        yield untracked
    except BaseException:
        if tracker is not None and (problem := stop_tracker(project, tracker)):
            print(f"tracking: {problem}", file=sys.stderr)
        raise
    if tracker is not None and (problem := stop_tracker(project, tracker)):
        untracked.append(problem)


def start_tracker(project: Path) -> subprocess.Popen[bytes]:
    """`rank-e track --follow` in a process and session of its own, so that Ctrl-C here leaves it its last copy."""
    command = [sys.executable, "-m", "pipeline.cli", "track", "--follow"]
    log = project / TRACKING_LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    # Born with SIGTERM held back: one that comes before the child can listen is delivered when it does.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with log.open("wb") as errors:  # MLflow is talkative there
            return subprocess.Popen(
                command, cwd=project, stdin=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_tracker(project: Path, process: subprocess.Popen[bytes]) -> str:
    """Ask for the last copy and wait for it, but not for ever; "" or, in one line, what was not copied."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SILENCE)
        if process.poll() is None:
            print("tracking: waiting for the last copy to MLflow", flush=True)
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "the last copy to MLflow took too long; `rank-e track` copies the rest"
    said = (project / TRACKING_LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line for line in said if line.startswith("rank-e: ")]  # a full disk may have cut off its log
    return "" if code == 0 else (own or [f"the tracker ended with {code}"])[-1].removeprefix("rank-e: ")
