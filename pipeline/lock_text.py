"""dvc.lock as text: what DVC would stumble over, or believe, is named by its line before anything reads it."""

from __future__ import annotations

import re
from pathlib import Path

from dvc.schema import COMPILED_LOCKFILE_SCHEMA as SCHEMA
from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
from voluptuous import Invalid

LOCK = Path("dvc.lock")
FIX = "take it back from git (`git checkout dvc.lock`), or remove it: what the cache has is not run again"
CONFLICT = re.compile(r"(<{7}|={7}|>{7})( |$)")
ENTRY = re.compile(r"      (md5|hash): *(.*)")
"""A line of a dependency or an output; parameters lie deeper."""
WANTED = {"md5": re.compile(r"(['\"]?)[0-9a-f]{32}(\.dir)?\1"), "hash": re.compile("md5")}


def lock_problem(project: Path) -> str | None:
    """The first thing that is wrong with the file, in a line; None where it is whole or not there."""
    path = project / LOCK
    if not path.exists():
        return None
    if not path.is_file():
        return f"{LOCK} is no file; {FIX}"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"{LOCK} is not text in UTF-8; {FIX}"
    lines = text.splitlines()
    if not any(line.startswith("schema:") for line in lines):
        return f"{LOCK} is empty or cut off: no line says its schema; {FIX}"
    for number, line in enumerate(lines, start=1):
        if CONFLICT.match(line):
            return f"{LOCK}, line {number}: two versions that git could not merge; take one, or {FIX}"
        if (entry := ENTRY.fullmatch(line)) and not WANTED[entry[1]].fullmatch(entry[2].strip()):
            return f"{LOCK}, line {number}: {line.strip()[:60]} is not what DVC writes; {FIX}"
    try:
        SCHEMA(parse_yaml(text, str(LOCK)))
    except (YAMLFileCorruptedError, Invalid) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:100]
        return f"{LOCK} is cut off, or not what DVC writes ({reason}); {FIX}"
    return None
