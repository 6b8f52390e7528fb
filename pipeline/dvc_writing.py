"""What DVC writes into dvc.lock and its other YAML files is whole: each is replaced, never written where it stands.

DVC empties the file and then writes it, so a kill in between would leave the next run a file that nothing can read.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.utils.serialize import _common, _yaml

from rank_e.io.files import replacing


@contextmanager
def writing_whole() -> Iterator[None]:
    """While the block runs, a kill of this process leaves each file of DVC as it was or as it shall be."""
    write = _common._dump_data

    def replace(path: str | os.PathLike[str], data: Any, dumper: Callable[..., Any], fs: Any = None, **how: Any) -> Any:
        if Path(path).suffix == ".tmp":  # DVC itself puts this one in its place
            return write(path, data, dumper, fs, **how)
        place = Path(path).resolve()  # a link stays one
        with replacing(place) as new:
            write(new, data, dumper, fs, **how)
            if place.exists():
                shutil.copymode(place, new)

    _common._dump_data = _yaml._dump_data = replace
    try:
        yield
    finally:
        _common._dump_data = _yaml._dump_data = write
