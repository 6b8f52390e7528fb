"""What stands where a download should: a Git LFS pointer or a web page instead of the file itself."""

from __future__ import annotations

from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")


def stand_in(path: str | Path) -> str | None:
    """What an existing file holds instead of its contents, and the fix; None where it may be the file itself."""
    with Path(path).open("rb") as file:
        start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_LFS):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`, or download it again"
    if start.startswith(_PAGES):
        return "is a web page, not the file itself; download it again"
    return None
