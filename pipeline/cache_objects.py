"""The objects of DVC's cache: files that are named by the hash of their contents."""

import hashlib
from pathlib import Path

OBJECTS = Path("files") / "md5"
"""Where they lie below the cache's folder."""


def holds(path: Path) -> bool:
    """Whether an object's contents have the hash that it is named by."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return digest == path.parent.name + path.name.removesuffix(".dir")
