"""Nothing that a run started outlives it, however it ends: `python -m pipeline.guardian TOKEN` watches over it.

Every process of a run carries the run's token in its environment: Prefect's server, DVC, stages, the warm process, the
copier to MLflow. The guardian's standard input closes when the run is gone, also by SIGKILL; it then ends all of them.
It keeps the project's lock open until it has, so that the next run does not meet them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import psutil

from stages.runtime.locks import TOKEN

GRACE = 10.0
"""Seconds that processes get to end by themselves: stages save their state."""
HASTE = 3.0
"""The same after Ctrl-C: somebody waits for the shell."""
SERVER = "prefect.server.api.server:create_app"
"""A word of the command line of Prefect's temporary server, which has nothing to save."""
COPIER = "pipeline.cli"
"""The same of the copier to MLflow, which the next run's goes on from."""
FORCE = 2.0
"""Seconds for the system to bury what was killed, and for a Prefect server to hear of it."""
DONE = b"done"
"""What a run that has ended everything by itself tells its guardian."""

FAREWELLS: list[Callable[[], None]] = []
"""What `leave` does besides, a thread each; it waits FORCE seconds for them at most."""
_guardian: subprocess.Popen[bytes] | None = None
"""This process's."""


@contextlib.contextmanager
def working(project: Path, command: str, wait: float) -> Iterator[bool]:
    """`owning` the project, under a guardian; False where the run that this process belongs to has both."""
    from pipeline.lock import owning

    with owning(project, command, wait) as lock:
        if lock.file is None:
            yield False
            return
        global _guardian
        _guardian = subprocess.Popen(
            [sys.executable, "-m", "pipeline.guardian", os.environ[TOKEN]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[lock.file.fileno()],
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != TOKEN},  # it does not end itself
        )
        try:
            yield True
        finally:
            _dismiss()


def _dismiss() -> None:
    """All has ended: the guardian has nothing to do."""
    global _guardian
    guardian, _guardian = _guardian, None
    if guardian is None:
        return
    assert guardian.stdin is not None
    with contextlib.suppress(BrokenPipeError), guardian.stdin as pipe:  # broken: it was killed
        pipe.write(DONE)
    guardian.wait()


def leave(number: int, haste: bool = False) -> NoReturn:
    """Ctrl-C or SIGTERM: one line, then silence; end every process of this run, and this one.

    Prefect's own ending would take minutes, and a traceback for every task; what is done is on the disk already. haste:
    somebody waits, as after Ctrl-C.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    start = "\n" if os.isatty(2) else ""  # after the terminal's ^C
    os.write(2, f"{start}rank-e: stopped by {name}; what is done is kept: `rank-e run` goes on from there\n".encode())
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    threads = [threading.Thread(target=farewell, daemon=True) for farewell in FAREWELLS]
    for thread in threads:
        thread.start()
    haste = haste or number == signal.SIGINT
    # Those who would go on talking at the terminal are not asked.
    end(os.environ[TOKEN], HASTE if haste else GRACE, (SERVER, COPIER) if haste else (SERVER,))
    deadline = time.monotonic() + FORCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    _dismiss()
    os._exit(128 + number)


def end(token: str, grace: float, at_once: Sequence[str] = (SERVER,)) -> None:
    """End every process that carries this token: SIGTERM, after `grace` seconds SIGKILL; returns when none is left.

    SIGKILL at once where the command line has one of the words `at_once`.
    """
    asked = set[int]()
    deadline = time.monotonic() + grace
    while (now := time.monotonic()) < deadline + FORCE and (found := members(token)):
        for process in found:
            with contextlib.suppress(psutil.Error):
                if now >= deadline or not set(at_once).isdisjoint(process.cmdline()):
                    process.kill()
                elif process.pid not in asked:
                    process.terminate()
        asked |= {process.pid for process in found}
        time.sleep(0.1)


def members(token: str) -> list[psutil.Process]:
    """The living processes, other than this one, that carry this token."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.pid != os.getpid()
                and process.environ().get(TOKEN) == token
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def main() -> None:
    """Wait until the run is gone, then end what it left."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)
    if sys.stdin.buffer.read() != DONE:
        end(sys.argv[1], GRACE)


if __name__ == "__main__":
    main()
