"""Things that `params.yaml` names by a dotted path, `package.module:factory`: imported and made when needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_e.errors import RankEError

if TYPE_CHECKING:
    import torch


def call_factory(
    where: str,
    path: str,
    folder: Path,
    given: torch.device | int,
    options: Mapping[str, Any],
    error: type[RankEError] = RankEError,
    wanted: tuple[type, str] = (Callable, "something that can be called"),  # type: ignore[assignment]
) -> Any:
    """factory(folder, given, **options) of the dotted `path`; `given` is the device, for a dataset the image size.

    What it gives must be an instance of `wanted`. Any error becomes an `error` in one line that begins with `where`:
    the code may be the user's.
    """
    module, _, attribute = path.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as cause:
        raise error(f"{where}.kind: {path} cannot be imported ({cause}); correct the path") from cause
    try:
        made = factory(folder, given, **options)
    except RankEError as cause:
        raise error(f"{where}: {cause}") from cause
    except Exception as cause:
        line = " ".join(str(cause).split())
        raise error(f"{where}: {path} failed with {type(cause).__name__}: {line}; fix it") from cause
    if not isinstance(made, wanted[0]):
        raise error(f"{where}: {path} gave a {type(made).__name__}; return {wanted[1]}")
    return made
