"""The objects of DVC's cache: files that are named by the hash of their contents."""

from pathlib import Path

from rank_e.io.files import md5_of

OBJECTS = Path("files") / "md5"
"""Where they lie below the cache's folder."""


def holds(path: Path) -> bool:
    """Whether an object's contents have the hash that it is named by."""
    return md5_of(path) == path.parent.name + path.name.removesuffix(".dir")
