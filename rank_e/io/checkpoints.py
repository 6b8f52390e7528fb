"""Reading checkpoints safely, comparing their keys strictly, writing folders whole.

A checkpoint is a `.safetensors` file, a `.pt`/`.pth`/`.bin`/`.ckpt` file that holds nothing but tensors and plain
values (`weights_only=True`: a pickle that wants anything else is refused by the name of what it wants), or the
`*.index.json` of a sharded Hugging Face checkpoint. Tensors keep their bits and their dtype.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rank_e.errors import RankEError, listed
from rank_e.io.archives import is_archive
from rank_e.io.files import check_name, gigabytes, plain, replacing
from rank_e.io.json_text import parse_json
from rank_e.io.stand_ins import stand_in
from rank_e.io.verified import WEIGHTS

STATE_KEYS = ("model", "module", "state_dict")  # of plain scripts, DeepSpeed, Lightning
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
DTYPES: tuple[torch.dtype, ...] = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)  # counters and masks
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


class CheckpointError(RankEError):
    """A checkpoint cannot be read, or is not of the model that was asked for."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, in the file's dtypes; wrapper prefixes removed.

    A `.pt` may hold the state dict bare or under "model", "module" or "state_dict". Large files are mapped into
    memory, not copied: do not write to the tensors. CheckpointError (one line, naming the file and the fix) for
    a missing, truncated, damaged or empty file, a pickle with more than tensors, and a format that is not known.
    """
    return _unwrapped(_read(Path(path)))


def _read(path: Path) -> dict[str, Tensor]:
    """`read_tensors` with the names as they stand in the file."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file; give the checkpoint file's path")
    check_whole(path)
    if path.name.endswith(".index.json"):
        state: Any = {name: tensor for part in read_shards(path).values() for name, tensor in part.items()}
    elif path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        state = _state_of(_read_torch(path), path)
    else:
        known = ", ".join((".safetensors", ".index.json", *TORCH_SUFFIXES))
        raise CheckpointError(f"{path}: a checkpoint ends in {known}; give such a file")
    if not state:
        raise CheckpointError(f"{path} holds no tensors; download it again")
    _check_plain(state, path)
    return {name: tensor.detach() for name, tensor in state.items()}


def _check_plain(state: Mapping[Any, Tensor], path: Path) -> None:
    """CheckpointError unless names are text, and tensors are numbers in memory that a model can be made of."""
    if unnamed := [name for name in state if not isinstance(name, str)]:
        found = listed([str(name) for name in unnamed])
        raise CheckpointError(f"{path} names tensors by {found}, which is no text; give a model's state dict")
    odd = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')}, {str(tensor.layout).removeprefix('torch.')}"
        f" on {tensor.device})"
        for name, tensor in state.items()
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta
    ]
    if odd:
        fix = "save it again as plain tensors of float32, float16 or bfloat16"
        raise CheckpointError(f"{path} holds tensors that no model is made of, {listed(odd)}; {fix}")


def check_whole(path: Path) -> None:
    """CheckpointError for a pointer or a web page in an existing file's place, and an archive that fails its CRC."""
    if (found := stand_in(path)) is not None:
        raise CheckpointError(f"{path} {found}")
    if is_archive(path) and (fault := WEIGHTS.contents(path).fault) is not None:
        raise CheckpointError(f"{path} {fault}; download it again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not safetensors ({_line(error)}); download it again") from None


def _packed_member(path: Path) -> str | None:
    """The first member that is compressed, of an archive or of a file that is none."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return next((m.filename for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED), None)


def _read_torch(path: Path) -> Any:
    if (packed := _packed_member(path)) is not None:  # mapped, its bytes would be taken for numbers
        raise CheckpointError(
            f"{path}: its member {packed} is compressed, which torch never does; save it by torch.save"
        )
    try:
        # Only the zip format of torch >= 1.6 can be mapped; a truncated file has lost the zip's directory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise CheckpointError(f"{path} is truncated or not a checkpoint; download it again") from None
        raise CheckpointError(
            f"{path} is refused: its pickle wants {refused[1]}, and only tensors are read; "
            "save it again with its tensors alone, on a machine where you trust the file"
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({_line(error)}); download it again") from None


def read_shards(index: Path) -> dict[Path, dict[str, Tensor]]:
    """The tensors of each shard that a Hugging Face index names, beside the index; by the shards' names.

    The index decides: what a shard holds besides is left, such as a second tensor of a name that stands in another.
    """
    try:
        places = parse_json(index.read_text(encoding="utf-8"))["weight_map"]
        wanted: dict[str, list[str]] = {}
        for name, shard in places.items():
            wanted.setdefault(shard, []).append(name)
    except ValueError as error:
        raise CheckpointError(f"{index} has no `weight_map` ({_line(error)}); download it again") from None
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} has no `weight_map`; download it again") from None
    for shard in wanted:
        if not isinstance(shard, str) or Path(shard).name != shard or shard.endswith(".json"):
            raise CheckpointError(f"{index}: shard {shard!r} is not a file beside the index; download it again")
    parts: dict[Path, dict[str, Tensor]] = {}
    for shard, names in sorted(wanted.items()):
        held = _read(index.parent / shard)
        if missing := [name for name in names if name not in held]:
            raise CheckpointError(f"{index.parent / shard} lacks {listed(missing)}; download it again")
        chosen = set(names)
        parts[index.parent / shard] = {name: tensor for name, tensor in held.items() if name in chosen}
    return parts


def _state_of(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a `.pt` held: itself, or the entry under one of STATE_KEYS."""
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in STATE_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
        wrong = [str(name) for name, value in inner.items() if not isinstance(value, Tensor)]
        if not wrong:
            return dict(inner)
        found = f"{listed(wrong)} not tensors"
    else:
        found = f"a {type(loaded).__name__}"
    wanted = " or ".join(repr(key) for key in STATE_KEYS)
    raise CheckpointError(f"{path} is no state dict ({found}); give one of tensors, bare or under the key {wanted}")


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the wrappers' prefixes; a prefix goes only when every name has it."""
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            return _unwrapped({name.removeprefix(wrapper): tensor for name, tensor in state.items()})
    return state


def _line(error: Exception) -> str:
    """The first line of an error's message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes, for `check_shapes`; tensors may be on the meta device."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def without(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors but the one called `name`."""
    return {key: tensor for key, tensor in tensors.items() if key != name}


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], where: str | Path) -> None:
    """CheckpointError that counts the missing, unexpected and mis-shaped keys of `tensors`, found in `where`.

    It names the first of each; a checkpoint of another model has thousands.
    """
    found = shapes_of(tensors)
    wanted = {name: tuple(shape) for name, shape in expected.items()}
    lists = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name])}, not {list(wanted[name])}"
            for name in wanted
            if name in found and found[name] != wanted[name]
        ],
    }
    if any(lists.values()):
        text = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in lists.items() if names)
        raise CheckpointError(f"{where} does not fit the model; give a checkpoint of this model. {text}")


def check_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """CheckpointError that names the first tensors with an infinite or undefined value, and counts the others."""
    wrong = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if wrong:
        raise CheckpointError(f"{where} holds values that are not finite in {listed(wrong)}; download it again")


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many tensors there are of each dtype, by its name, such as {"float32": 258}."""
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return dict(sorted(counts.items()))


def origin_of(path: str | Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A manifest's entry of the file that `tensors` were read from: sha256, bytes, number of keys, dtypes."""
    path = Path(path)
    return {
        "sha256": WEIGHTS.contents(path).sha256,
        "bytes": path.stat().st_size,
        "keys": len(tensors),
        "dtype": dtypes_of(tensors),
    }


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a `.safetensors` file, bit for bit."""
    save_file(plain(tensors), path, metadata={"format": "pt"})


def save_torch(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a `.pt` file: a dict with the state dict under "model"."""
    torch.save({"model": plain(tensors)}, path)


def check_space(target: str | Path, needed: int) -> None:
    """CheckpointError when the disk on which `target` will stand has less than `needed` bytes free."""
    place = Path(target).absolute()
    while not place.exists():
        place = place.parent
    total, _, free = shutil.disk_usage(place)
    if total == 0:  # /proc and its like
        raise CheckpointError(f"{target}: {place} keeps no files; name a folder on a disk")
    if free < needed:
        raise CheckpointError(f"{target} needs {gigabytes(needed)}, {gigabytes(free)} are free; free some disk")


def check_absent(target: str | Path) -> None:
    """CheckpointError when `target` exists already and is not an empty folder; RankEError if its name is not UTF-8."""
    target = Path(target)
    check_name(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target} exists already; remove it or name another folder")


@contextmanager
def write_folder(target: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, synced to disk; else it is removed.

    CheckpointError when `target` exists already and is not an empty folder.
    """
    target = Path(os.path.abspath(target))
    check_absent(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{target.parent} cannot be made ({error.strerror}); name another folder") from None
    with replacing(target) as folder:
        folder.mkdir()
        yield folder
        check_absent(target)  # nobody filled it meanwhile
