"""Things that `params.yaml` names by a dotted path, `package.module:factory`: imported and made when needed."""

from __future__ import annotations

from collections.abc import Mapping
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
    device: torch.device,
    options: Mapping[str, Any],
    error: type[RankEError] = RankEError,
) -> Any:
    """factory(folder, device, **options) of the dotted `path`; what it gives must be callable.

    Any error becomes an `error` in one line that begins with `where`: the code may be the user's.
    """
    module, _, attribute = path.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as cause:
        raise error(f"{where}.kind: {path} cannot be imported ({cause}); correct the path") from cause
    try:
        made = factory(folder, device, **options)
    except RankEError as cause:
        raise error(f"{where}: {cause}") from cause
    except Exception as cause:
        line = " ".join(str(cause).split())
        raise error(f"{where}: {path} failed with {type(cause).__name__}: {line}; fix it") from cause
    if not callable(made):
        raise error(f"{where}: {path} gave a {type(made).__name__}; return something that can be called")
    return made
