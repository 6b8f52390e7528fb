"""A warm process for the stages of one run (see `stages.runtime.warm`): they fork from it, torch imported."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rank_e.errors import RankEError
from stages.runtime.warm import SOCKET

PATIENCE = 30.0
"""Seconds that the process gets to open its socket, and to end."""


@contextlib.contextmanager
def warm_stages(project: Path) -> Iterator[None]:
    """While the block runs, every `python -m stages NAME` started from here runs in a fork of one warm process."""
    with tempfile.TemporaryDirectory(prefix="rank-e-") as folder:
        path = Path(folder) / "stages.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.runtime.warm", str(path)],
            cwd=project,
            stdin=subprocess.PIPE,  # its closing, also by our death, ends the process
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            _wait_for(path, process)
            os.environ[SOCKET] = str(path)
            yield
        finally:
            os.environ.pop(SOCKET, None)
            process.stdin.close()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RankEError(f"the warm process did not start (exit code {process.poll()}): see its output above")
        time.sleep(0.01)
