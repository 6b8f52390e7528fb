"""Names, dtypes and shapes of a safetensors file from its header alone: no weights are read, torch is not imported."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from rank_e.errors import RankEError
from rank_e.io.json_text import parse_json
from rank_e.io.stand_ins import stand_in

LONGEST = 100_000_000  # bytes of a header, as the format allows
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""What a Hugging Face folder's weights are called; the first that is there is read."""


class Entry(NamedTuple):
    """A tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


def read_header(path: str | Path) -> dict[str, Entry]:
    """The tensors of a .safetensors file by name; RankEError (one line) for a missing, cut off or other file."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LONGEST, size - 8):
                raise ValueError("no header")
            header = parse_json(file.read(length))
        entries = {name: value for name, value in header.items() if name != "__metadata__"}
        end = max((int(value["data_offsets"][1]) for value in entries.values()), default=0)
        found = {name: Entry(str(value["dtype"]), _shape(value["shape"])) for name, value in entries.items()}
    except OSError as error:
        raise RankEError(f"{path} cannot be read ({error.strerror}); put the file there") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise RankEError(f"{path} {stand_in(path) or 'is truncated or not safetensors; get it again'}") from None
    if end != size - 8 - length:
        raise RankEError(f"{path} has {size} bytes, its header says {end + 8 + length}; get it again")
    return found


def _shape(sizes: Any) -> tuple[int, ...]:
    """A list of sizes from 0 on; ValueError for anything else."""
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("no shape")
    return tuple(sizes)
