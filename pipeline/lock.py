"""One at a time works in a project: the lock of a run or a repair, and what DVC itself tells of who works.

A `python -m dvc repro` takes the project's lock in each of its stages, but not in between. At any instant it either
holds DVC's own lock or stands in DVC's rwlock, so whoever takes the project's lock here looks there first. DVC writes
an rwlock in place and never asks whose a process's number is now: what a dead process left in it, or half of it, is
removed.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo
from dvc.rwlock import SCHEMA
from voluptuous import Invalid

from rank_e.errors import RankEError
from stages.runtime.locks import BUSY, TOKEN, Hold, LockedError, alive, project_lock


@contextlib.contextmanager
def owning(project: Path, command: str, wait: float) -> Iterator[Hold]:
    """The project is this process's while the block runs; LockedError names whoever else has it for `wait` seconds.

    What is started meanwhile belongs to it. Within a run that owns the project nothing is taken.
    """
    lock, before = take(project, command, wait), os.environ.get(TOKEN)
    if lock.file is None:
        yield lock
        return
    os.environ[TOKEN] = lock.holder.token
    try:
        yield lock
    finally:
        if before is None:
            del os.environ[TOKEN]
        else:
            os.environ[TOKEN] = before
        lock.release()


def take(project: Path, command: str, wait: float) -> Hold:
    """The project's lock, taken when neither a run nor a process of DVC works there."""
    deadline = time.monotonic() + wait
    while True:
        # Looked at first: a run is named before the processes of DVC that work for it.
        look = project_lock(project, command, deadline - time.monotonic())
        look.take()
        if look.file is None:
            return look
        look.release()  # a stage of a `dvc repro` must not be refused by somebody who only waits
        try:
            with without_dvc(project):
                lock = project_lock(project, command, 0.0)
                lock.take()
                return lock
        except LockedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.5)


@contextlib.contextmanager
def without_dvc(project: Path) -> Iterator[None]:
    """No process of DVC works in the project while the block runs; LockedError names one that does."""
    try:
        repo = Repo(str(project))
    except DvcException as error:
        raise RankEError(f"{project.absolute()}: {error}; run it in a project's folder") from None
    with repo:
        folder = Path(str(repo.tmp_dir))
        hardlink = repo.config["core"].get("hardlink_lock", False)
    lock = make_lock(str(folder / "lock"), tmp_dir=str(folder), hardlink_lock=hardlink)
    try:
        lock.lock()  # DVC's own patience: three seconds
    except LockError:
        pid = (folder / "lock").read_text(encoding="utf-8", errors="replace").strip()
        raise LockedError(BUSY.format(holder=f"dvc (pid {pid})" if pid.isdigit() else "a process of DVC")) from None
    try:
        pids = remove_dead(folder / "rwlock")
        if pids:
            raise LockedError(BUSY.format(holder=f"dvc (pid {', '.join(map(str, pids))})"))
        yield
    finally:
        lock.unlock()


def remove_dead(rwlock: Path) -> list[int]:
    """The living processes that stand in DVC's rwlock; without any it is removed, whole or not.

    To be called under DVC's lock, as DVC changes the file.
    """
    try:
        held = SCHEMA(json.loads(rwlock.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (ValueError, Invalid):  # its writer was killed, or the disk was full
        held = {"write": {}, "read": {}}
    entries = [*held["write"].values(), *(entry for entries in held["read"].values() for entry in entries)]
    found = sorted({entry["pid"] for entry in entries if _is_dvc(entry["pid"])})
    if not found:
        rwlock.unlink()
    return found


def _is_dvc(pid: int) -> bool:
    """Whether this process lives and is DVC's: a dead one's number may be another's by now."""
    with contextlib.suppress(psutil.Error):
        return alive(pid) and any("dvc" in word for word in psutil.Process(pid).cmdline())
    return False
