"""What DVC writes into dvc.lock, its other YAML files and its rwlock is whole: each is replaced at the end.

DVC empties the file and then writes it, so a kill or a full disk in between would leave a file that nothing can read.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from dvc import rwlock
from dvc.utils.serialize import _common, _yaml

from rank_e.io.files import replacing


class ReplacingFiles:
    """DVC's file system, but for the moment in which a file that is written is not whole."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def join(self, *parts: str) -> str:
        return str(self.fs.join(*parts))

    @contextmanager
    def open(self, path: str, mode: str = "r", **how: Any) -> Iterator[IO[str]]:
        """As the file system's, but that what is written takes its place at the end."""
        # Whose processes are at work says nothing after a power cut, and is written several times a stage.
        written = replacing(Path(path), durable=False) if mode == "w" else nullcontext(path)
        with written as place, self.fs.open(str(place), mode, **how) as file:
            yield file


@contextmanager
def writing_whole() -> Iterator[None]:
    """While the block runs, a kill of this process leaves each file of DVC as it was or as it shall be."""
    write, edit = _common._dump_data, rwlock._edit_rwlock

    def replace(path: str | os.PathLike[str], data: Any, dumper: Callable[..., Any], fs: Any = None, **how: Any) -> Any:
        if Path(path).suffix == ".tmp":  # DVC itself puts this one in its place
            return write(path, data, dumper, fs, **how)
        place = Path(path).resolve()  # a link stays one
        if place.exists() and not os.access(place, os.W_OK):  # as if it were written where it stands
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        with replacing(place) as new:
            write(new, data, dumper, fs, **how)
            if place.exists():
                shutil.copymode(place, new)

    def edit_whole(folder: str, fs: Any, hardlink: bool) -> Any:
        return edit(folder, ReplacingFiles(fs), hardlink)

    _common._dump_data = _yaml._dump_data = replace
    rwlock._edit_rwlock = edit_whole
    try:
        yield
    finally:
        _common._dump_data = _yaml._dump_data = write
        rwlock._edit_rwlock = edit
