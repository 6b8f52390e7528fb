"""Files beside their recorded sha256: each is hashed once, as long as its path, size, time and inode stay. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rank_e.io.files import sha256_of


class Verified:
    """Which files were found to hold what was recorded of them, in this process and, in a folder, beyond it.

    The folder holds an empty file for each finding, named by a hash of it: a damaged one says nothing. Rot that leaves
    size and time alone is seen by the next process, or with a folder not before the file is written again: a folder is
    for what is large, seldom written and outside the pipeline, such as downloaded weights.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._folder: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """Keep findings in `folder`, made when the first one comes."""
        self._folder = folder

    def holds(self, path: Path, sha256: str) -> bool:
        """Whether the file's sha256 is this one."""
        status = path.stat()
        finding = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\0{sha256}"
        name = hashlib.sha256(finding.encode()).hexdigest()
        if name in self._known or (self._folder is not None and (self._folder / name).is_file()):
            return True
        if sha256_of(path) != sha256:
            return False
        self._known.add(name)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).touch()
        return True


WEIGHTS = Verified()
"""Weights that a run takes in: hundreds of gigabytes that every stage opens and none writes."""
