"""Files of an unfinished computation that carry the sha256 of their own contents: what is damaged is never taken up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rank_e.errors import RankEError
from rank_e.io.files import plain, replacing

if TYPE_CHECKING:
    from torch import Tensor


class SealError(RankEError):
    """A file does not hold what was written."""


def write_json(value: Any, path: Path) -> None:
    """Replace `path` by a JSON value and the sha256 of its text."""
    text = json.dumps(value, sort_keys=True)
    with replacing(path) as file:
        file.write_text(json.dumps({"sha256": _sha256(text), "value": value}), encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value; SealError where it is not the one that was written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        value, sha256 = found["value"], found["sha256"]
    except (ValueError, KeyError, TypeError):
        raise SealError(f"{path} is damaged") from None
    if _sha256(json.dumps(value, sort_keys=True)) != sha256:
        raise SealError(f"{path} is damaged")
    return value


def write_tensors(tensors: Mapping[str, Tensor], value: Any, path: Path) -> None:
    """Replace `path` by tensors, with a JSON value and the sha256 of both in the header."""
    from safetensors.torch import save_file

    owned, text = plain(tensors), json.dumps(value)
    with replacing(path) as file:
        save_file(owned, file, metadata={"value": text, "sha256": _sha256(text, owned)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors, on the CPU, and the value; SealError where they are not those that were written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            text, sha256 = (file.metadata()[key] for key in ("value", "sha256"))
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError):
        raise SealError(f"{path} is damaged") from None
    if _sha256(text, tensors) != sha256:
        raise SealError(f"{path} is damaged")
    return tensors, json.loads(text)


def _sha256(text: str, tensors: Mapping[str, Tensor] = MappingProxyType({})) -> str:
    """Of a text, and of tensors' names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    import torch  # readers of JSON start without it

    return tensor.reshape(-1).view(torch.uint8).numpy().data
