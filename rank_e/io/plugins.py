"""Things that `params.yaml` names by a dotted path: `package.module:factory`, given a folder and options of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rank_e.errors import RankEError


def is_path(kind: object) -> bool:
    """Whether `kind` is a dotted path rather than a published thing's name."""
    return isinstance(kind, str) and ":" in kind


def call_factory(
    where: str,
    kind: str,
    folder: Path,
    given: torch.device | int,
    options: Mapping[str, Any],
    error: type[RankEError] = RankEError,
    wanted: tuple[type, str] = (Callable, "something that can be called"),  # type: ignore[assignment]
) -> Any:
    """factory(folder, given, **options), `given` the device, for a dataset the image size: an instance of `wanted`.

    The code is the user's: any error of it becomes an `error` at `where`.
    """
    module, _, attribute = kind.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as cause:
        raise error(f"{where}.kind: {kind} cannot be imported ({cause}); correct the path") from cause
    try:
        made = factory(folder, given, **options)
    except Exception as cause:
        line = " ".join(str(cause).split())
        raise error(f"{where}: {kind} failed with {type(cause).__name__}: {line}; fix it") from cause
    if not isinstance(made, wanted[0]):
        raise error(f"{where}: {kind} gave a {type(made).__name__}; return {wanted[1]}")
    return made
