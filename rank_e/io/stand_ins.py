"""What stands where a download should: a pointer, a web page or a server's refusal instead of the file itself."""

from __future__ import annotations

from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = (b"/annex/objects/", b"# xet version ")  # of git-annex and of Hugging Face's Xet
_PAGES = (
    b"<!doctype html",
    b"<html",
    b"<head",
    b"<?xml",
    b"<!--",
    b"<title",
    b"<meta",
    b"<body",
    b"<script",
    b"<error>",
)
_REFUSALS: tuple[bytes, ...] = (
    b"404: not found",
    b"not found",
    b"entry not found",
    b"repository not found",
    b"access denied",
    b"invalid username or password.",
    b"invalid credentials in authorization header",
    b"forbidden",
)
"""All that GitHub, Hugging Face and others send, as a file's whole contents, where they have or give no file."""


def stand_in(path: str | Path) -> str | None:
    """What an existing file holds instead of its contents, and the fix; None where it may be the file itself."""
    with Path(path).open("rb") as file:
        start = file.read(512).removeprefix(b"\xef\xbb\xbf").strip().lower()
    if start.startswith(_LFS):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`, or download it again"
    if start.startswith(_ANNEX):
        return "is a pointer of git-annex or Xet, not the file itself; `git annex get` it, or download it again"
    if start in _REFUSALS:
        return f"holds nothing but {start.decode()!r}, which a server sent instead of the file; download it again"
    if start.startswith(_PAGES):
        return "is a web page, not the file itself; download it again"
    return None
