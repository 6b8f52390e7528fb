"""dvc.lock as text: what DVC would stumble over, or believe, is named by its line before anything reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

LOCK = Path("dvc.lock")
FIX = "take it back from git (`git checkout dvc.lock`), or remove it: what the cache has is not run again"
CONFLICT = re.compile(r"(<{7}|={7}|>{7})( |$)")
ENTRY = re.compile(r"      (md5|hash): *(.*)")
"""A line of a dependency or an output; parameters lie deeper."""
WANTED = {"md5": re.compile(r"(['\"]?)[0-9a-f]{32}(\.dir)?\1"), "hash": re.compile("md5")}


def lock_problems(project: Path) -> Iterator[str]:
    """The first thing that is wrong with the file, in a line; nothing where it is whole or not there."""
    path = project / LOCK
    if not path.exists():
        return
    if not path.is_file():
        yield f"{LOCK} is no file; {FIX}"
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield f"{LOCK} is not text in UTF-8; {FIX}"
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if CONFLICT.match(line):
            yield f"{LOCK}, line {number}: two versions that git could not merge; take one, or {FIX}"
            return
        if (entry := ENTRY.fullmatch(line)) and not WANTED[entry[1]].fullmatch(entry[2].strip()):
            yield f"{LOCK}, line {number}: {line.strip()[:60]} is not what DVC writes; {FIX}"
            return
