"""What files hold, beside what was recorded of it: each is read once, as long as its path, size, time and inode stay.

No torch.
"""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from rank_e.io.archives import Contents, contents_of
from rank_e.io.files import check_name

FRESH = 0.1
"""Seconds: many times what file systems count their files' times in."""


class Verified:
    """What files were found to hold in this process and, of those that hold what was recorded, in a folder beyond it.

    The folder holds an empty file for each, named by a hash of its place and state, and its sha256. Rot that leaves
    size and time alone is seen by the next process, or with a folder not before the file is written again: a folder is
    for what is large, seldom written and outside the pipeline, such as downloaded weights.
    """

    def __init__(self) -> None:
        self._known: dict[str, Contents] = {}
        self._ahead: dict[str, Future[Contents]] = {}
        self._folder: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """Keep findings in `folder`, made when the first one comes."""
        self._folder = folder

    def ahead(self, path: Path) -> None:
        """Begin to read the file beside other work; whoever asks for its contents waits for that."""
        state = _state_of(path)
        if state in self._known or state in self._ahead:
            return
        found = self._ahead[state] = Future[Contents]()

        def read() -> None:
            try:
                found.set_result(contents_of(path))
            except BaseException as error:
                found.set_exception(error)

        threading.Thread(target=read, daemon=True).start()  # a stage that fails meanwhile does not wait for it

    def found(self, path: Path, sha256: str) -> None:
        """Take over what somebody has just read in the file, which is then not read again.

        Not of one that was written within FRESH seconds: another write might leave it the same time.
        """
        if time.time() - path.stat().st_mtime > FRESH:
            self._known[_state_of(path)] = Contents(sha256, None)

    def contents(self, path: Path) -> Contents:
        """The file's sha256, and what is wrong with it as an archive."""
        return self._contents(path, _state_of(path))

    def holds(self, path: Path, sha256: str) -> bool:
        """Whether the file's sha256 is this one."""
        state = _state_of(path)
        found = self._contents(path, state)
        if found.sha256 != sha256:
            return False
        if self._folder is not None and found.fault is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{state}-{sha256}").touch()
        return True

    def _contents(self, path: Path, state: str) -> Contents:
        if state in self._ahead:
            self._known[state] = self._ahead.pop(state).result()
        if state not in self._known:
            kept = [] if self._folder is None else list(self._folder.glob(f"{state}-*"))
            self._known[state] = Contents(kept[0].name.partition("-")[2], None) if len(kept) == 1 else contents_of(path)
        return self._known[state]


def _state_of(path: Path) -> str:
    """A hash of a file's place, size, time and inode: as long as they stay, so do its contents."""
    check_name(path)
    status = path.stat()
    state = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
    return hashlib.sha256(state.encode()).hexdigest()


WEIGHTS = Verified()
"""Weights that a run takes in: hundreds of gigabytes that every stage opens and none writes."""
