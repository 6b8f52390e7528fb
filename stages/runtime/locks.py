"""Locks: who works in this project, and who writes this artifact.

A lock is a file under flock: the kernel frees it when the last process that has it open is gone, however that ended.
Its text names the holder, for whoever finds it taken. Every process that a run starts carries the run's token in its
environment, and so passes the lock that the run itself holds.
"""

import contextlib
import fcntl
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rank_e.errors import RankEError

TOKEN = "RANK_E_OWNER"
"""The environment variable with the token of the run that a process belongs to."""
WAIT = "RANK_E_WAIT"
"""The environment variable with the seconds that a stage, or a command without --wait, waits for the project's lock."""
LOOK = 1.0
"""Seconds that everybody waits: somebody may only have looked whether the lock is free."""
ENDING = 20.0
"""Seconds that everybody waits for what a dead holder has left: its processes are being ended."""


BUSY = f"{{holder}} works in this project: wait for it (--wait SECONDS, or {WAIT}=SECONDS), or end it"
"""What whoever finds the project's lock taken is told."""


class LockedError(RankEError):
    """Another process works in this project, or writes the same artifact."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: the process to end or to wait for, what it is called, and its run's token."""

    pid: int
    command: str
    token: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


class Hold:
    """Hold a lock file while the block runs; LockedError if another keeps it for `patience` seconds, at least LOOK.

    Whoever carries the holder's token passes without holding anything: `file` is None then.
    """

    def __init__(self, path: Path, patience: float, holder: Holder, refusal: str) -> None:
        """refusal: what the error says, with {holder} and {path}."""
        self.path, self.patience, self.holder, self.refusal = path, patience, holder, refusal
        self.file: IO[str] | None = None

    def take(self) -> None:
        """Wait for the lock, and write the holder into it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+", encoding="utf-8")  # whoever waits must not empty what the holder wrote
        try:
            if self._wait(file):
                file.truncate(0)
                file.write(json.dumps(asdict(self.holder)))
                file.flush()
                self.file = file
        finally:
            if self.file is None:
                file.close()

    def _wait(self, file: IO[str]) -> bool:
        """True when the lock is ours, False when it is that of the run that we belong to."""
        began, said = time.monotonic(), False
        patient = began + max(self.patience, LOOK)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                other = read_holder(self.path)
            if other is not None and other.token and other.token == os.environ.get(TOKEN):
                return False
            now = time.monotonic()
            if now >= patient and (other is None or alive(other.pid) or now >= patient + ENDING):
                raise LockedError(self.refusal.format(holder=other or "another process", path=self.path))
            if not said and now >= began + LOOK:
                said = True
                print(f"waiting for {other or 'another process'}, which holds {self.path}", file=sys.stderr, flush=True)
            time.sleep(0.05)

    def release(self) -> None:
        """Let the next one take it, as soon as no other process has it open."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> "Hold":
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def read_holder(path: Path) -> Holder | None:
    """Who wrote a lock file last; None where it is just being written."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended: one that its parent has yet to bury has."""
    import psutil  # here: most stages never ask

    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def seconds(text: str) -> float:
    """A number of seconds from 0 on, `inf` among them; ValueError for anything else."""
    value = float(text)
    if not value >= 0:  # NaN is not either
        raise ValueError(f"{text} is no number of seconds")
    return value


def patience() -> float:
    """Seconds to wait for the project's lock where nobody says: those of RANK_E_WAIT, or none."""
    text = os.environ.get(WAIT, "0")
    try:
        return seconds(text)
    except ValueError:
        raise RankEError(f"{WAIT}={text!r} is no number of seconds from 0 on: correct or unset it") from None


def project_lock(project: Path, command: str, wait: float) -> Hold:
    """The lock of a project, which one run, repair or `dvc repro` holds at a time.

    A stage that DVC runs is named by DVC's process: that is the one to end.
    """
    pid = os.getppid() if "DVC_STAGE" in os.environ else os.getpid()
    holder = Holder(pid, command, f"{pid}-{secrets.token_hex(8)}")
    return Hold(project / ".rank-e" / "lock", wait, holder, BUSY)


@contextlib.contextmanager
def stage_locks(folder: Path, key: str, cell_patience: float) -> Iterator[None]:
    """Both locks of a stage: the project's, unless the run that it belongs to holds it, and its cell's in `folder`."""
    name = f"stage {key}"
    command = "dvc repro" if "DVC_STAGE" in os.environ else name
    refusal = "{holder} writes the same artifact and holds {path}: wait for it, or end it"
    cell = Hold(folder / f"{key}.lock", cell_patience, Holder(os.getpid(), name, ""), refusal)
    with project_lock(Path(), command, patience()), cell:
        yield
