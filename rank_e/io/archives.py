"""Zip archives of torch.save and TorchScript: whether their contents are what was written."""

from __future__ import annotations

import zipfile
import zlib
from functools import lru_cache
from pathlib import Path


def archive_fault(path: Path) -> str | None:
    """What is wrong with a zip archive, read whole against its checksums; None for a sound one and for other files.

    A file is read once in a process, as long as its size, time and inode stay. torch can be told to write no
    checksums, and puts zeros in their place: then there is nothing to compare.
    """
    state = path.stat()
    return _fault(path, (state.st_size, state.st_mtime_ns, state.st_ino))


@lru_cache(maxsize=64)
def _fault(path: Path, state: object) -> str | None:
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(member.CRC for member in archive.infolist()):
                return None
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        return f"is a damaged archive ({error})"
    return f"is damaged: its member {damaged} fails the archive's CRC" if damaged is not None else None


def packed_member(path: Path) -> str | None:
    """The first member that is compressed, of an archive or of a file that is none."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return next((m.filename for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED), None)
