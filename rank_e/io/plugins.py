"""Things that `params.yaml` names by a dotted path, `package.module:factory`: imported and made when needed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    except Exception as cause:
        raise error(f"{where}.kind: {module} failed with {_words(cause)}; fix it") from cause
    try:
        made = factory(folder, given, **options)
    except RankEError as cause:
        raise error(f"{where}: {cause}") from cause
    except Exception as cause:
        raise error(f"{where}: {path} failed with {_words(cause)}; fix it") from cause
    if not isinstance(made, wanted[0]):
        raise error(f"{where}: {path} gave a {type(made).__name__}; return {wanted[1]}")
    return made


@contextmanager
def calling(where: str, error: type[RankEError] = RankEError) -> Iterator[None]:
    """The block calls what may be the user's: any error of it becomes an `error` in one line that begins with `where`.

    One that has its own line already stays as it is.
    """
    try:
        yield
    except RankEError:
        raise
    except Exception as cause:
        raise error(f"{where}: failed with {_words(cause)}; fix it") from cause


def _words(cause: Exception) -> str:
    """An error's type, text and place (the innermost that is not a library's), in one line."""
    frames = traceback.extract_tb(cause.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    frame = (own or frames)[-1]
    line = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {line} ({Path(frame.filename).name}, line {frame.lineno})"
