"""What DVC or a stage would trip over in the project's folders: links to nowhere, pipes, names that are not UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rank_e.config import Params

WRITTEN = ("artifacts", "report", ".rank-e")
"""Folders that a run writes."""
SHOWN = 5
"""Entries that are named of each folder."""


def odd_places(params: Params) -> list[str]:
    """A line for each place that cannot be written to, and for each entry of the inputs that DVC cannot hash."""
    found = [line for name in WRITTEN for line in _unwritable(Path(name))]
    inputs = {
        "backbone.base": params.backbone.base,
        "data.training.folder": params.data.training.folder,
        "data.held_out.folder": params.data.held_out.folder,
        "weights.training": params.weights.training,
        "weights.evaluation": params.weights.evaluation,
    }
    seen: set[str] = set()
    for key, folder in inputs.items():
        if folder in seen:
            continue
        seen.add(folder)
        lines = [f"{key}: {line}" for line in _unreadable(folder)]
        found += lines[:SHOWN]
        if len(lines) > SHOWN:
            found.append(f"{key}: {folder} holds {len(lines) - SHOWN} more such entries")
    return found


def _unwritable(path: Path) -> Iterator[str]:
    """A link to nowhere where a folder will be made, something else than a folder, or a folder without permission."""
    if path.is_symlink() and not path.exists():
        yield f"{path} is a link to {os.readlink(path)}, which does not exist; make that folder, or remove the link"
    elif path.exists() and not path.is_dir():
        yield f"{path} is no folder; move it away: the run writes there"
    elif not os.access(path if path.exists() else Path.cwd(), os.W_OK | os.X_OK):
        yield f"{path.absolute()} cannot be written to; change its mode or owner, or mount it for writing"


def _unreadable(folder: str) -> Iterator[str]:
    """The entries at any depth that DVC stops at, or waits at for ever; only links cost a look of their own."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return  # said where its key is looked at
    except OSError as error:
        yield f"{folder!a}: {error.strerror}; correct the path, or change its mode or owner"
        return
    for entry in entries:
        if any("\ud800" <= sign <= "\udfff" for sign in entry.name):
            yield f"the name of {entry.path!a} is not UTF-8; rename it"
        elif entry.is_dir(follow_symlinks=False):
            yield from _unreadable(entry.path)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            yield f"{entry.path} is a link to {os.readlink(entry.path)}, which cannot be opened; remove or correct it"
        elif not entry.is_file() and not entry.is_dir():
            yield f"{entry.path} is neither a file nor a folder, reading it may never end; move it away"
