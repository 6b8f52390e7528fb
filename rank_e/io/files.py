"""Files and folders that are whole or not there; hashes; tensors as safetensors wants them; no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rank_e.errors import RankEError

if TYPE_CHECKING:  # readers of tables and scalars start without torch
    from torch import Tensor


def check_name(path: Path) -> None:
    """RankEError where a path is not UTF-8: neither torch nor safetensors opens one."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RankEError(f"{path}: its name is not UTF-8; rename it") from None


State = tuple[int, int, int]
"""Size, time and inode of a file, which stay as long as its contents do."""


def state_of(path: Path) -> State | None:
    """A file's state; None where there is no file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def sha256_of(path: str | Path) -> str:
    """sha256 of a file's contents, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_of(path: str | Path) -> str:
    """MD5 of a file's contents, in hexadecimal: what DVC knows files by."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def settled_sha256(path: Path) -> str:
    """sha256 of a file that nobody writes any more, which is on the disk when this returns."""
    found = sha256_of(path)
    _sync(path)
    return found


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; the file or folder made there takes its place when the block ends well.

    It is on the disk before that, so that neither a kill nor a power cut leaves half of it; after an error in the
    block it is removed, and what stood at `path` stays. Parents are made. A path has one writer at a time: what is
    found at the temporary path is a killed writer's. A folder at `path` goes away just before the new one comes.
    durable: wait for the disk; what a power cut makes worthless need not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-new")  # .dvcignore: never part of a dependency
    _remove(temporary)
    try:
        yield temporary
        for new in (*temporary.rglob("*"), temporary) if durable else ():
            _sync(new)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        _remove(temporary)


def _sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that are contiguous and own their memory, copied only where they do not: ready to be saved."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        owned[name] = value
    return owned


def gigabytes(value: float) -> str:
    """Bytes as text in powers of ten."""
    return f"{value / 1e9:,.1f} GB" if value >= 1e8 else f"{value / 1e6:,.1f} MB"
