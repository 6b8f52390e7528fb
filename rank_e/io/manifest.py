"""base.json, the manifest of a base folder: what it is of, what it was made from, and every file that belongs to it.

Keys of every format: `format`; `policy` and `tokenizer`, the networks' sizes; `files`, {name: {sha256, bytes}} of all
that stands beside it; `origin`, such entries of the files that it was converted from, by name (none for a base that was
trained here); `sha256` of all this. Further keys are the format's own. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rank_e.errors import RankEError
from rank_e.io.files import sha256_of
from rank_e.io.json_text import parse_json
from rank_e.io.verified import WEIGHTS

BASE_FILE = "base.json"
SEAL = "sha256"
KEYS = ("files", "origin", "policy", "tokenizer", SEAL)  # beside the format


class Format(NamedTuple):
    """What base.json says under `format`, and what a user does when a folder of it is missing, damaged or outdated."""

    name: str
    fix: str


def save_json(value: Any, path: Path) -> None:
    """Write JSON with sorted keys."""
    path.write_text(json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and bytes of every file below a folder, for its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in files}


def write_manifest(folder: Path, form: Format, manifest: Mapping[str, Any]) -> None:
    """Write base.json: `manifest`, its format, and sha256 and bytes of everything else that stands in the folder."""
    files = {name: entry for name, entry in files_of(folder).items() if name != BASE_FILE}
    seal_manifest(folder, {**manifest, "format": form.name, "files": files})


def seal_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write base.json as it is, with the sha256 of what it says."""
    save_json({**manifest, SEAL: _sha256(manifest)}, folder / BASE_FILE)


def _sha256(manifest: Mapping[str, Any]) -> str:
    said = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def parse_manifest(folder: str | Path, expected: Format) -> dict[str, Any]:
    """base.json of a folder, without its own hash.

    RankEError where it is missing, not what was written, of another format or of an older version.
    """
    path = Path(folder) / BASE_FILE
    if not path.is_file():
        raise RankEError(f"backbone.base: {path} does not exist; {expected.fix}")
    try:
        manifest: dict[str, Any] = dict(parse_json(path.read_text(encoding="utf-8")))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError):
        raise RankEError(f"backbone.base: {path} is not a base's manifest; {expected.fix}") from None
    if found != expected.name:
        raise RankEError(f"backbone.base: {path} is of format {found!r}, not {expected.name!r}; {expected.fix}")
    absent = [key for key in KEYS if key not in manifest]
    if absent:
        raise RankEError(f"backbone.base: {path} lacks {', '.join(absent)}: an older version wrote it; {expected.fix}")
    if manifest.pop(SEAL) != _sha256(manifest):
        raise RankEError(f"backbone.base: {path} is not what was written; {expected.fix}")
    return manifest


def read_manifest(folder: str | Path, expected: Format) -> dict[str, Any]:
    """The same, of a folder whose files hold what was written; RankEError names one that does not."""
    manifest = parse_manifest(folder, expected)
    check_files(Path(folder), manifest["files"], "backbone.base", expected.fix)
    return manifest


def size_problems(folder: Path, files: Mapping[str, Mapping[str, Any]], where: str, fix: str) -> Iterator[str]:
    """A line for each of a manifest's files (name -> {bytes}) that is not in `folder` at its full size."""
    for name, entry in files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes, not {entry['bytes']}"
            yield f"{where}: {file} {state}; {fix}"


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]], where: str, fix: str) -> None:
    """RankEError for the first file (name -> {bytes, sha256}) that does not hold what was recorded of it.

    Each is hashed once: see `rank_e.io.verified`.
    """
    for problem in size_problems(folder, files, where, fix):
        raise RankEError(problem)
    for name, entry in files.items():
        if not WEIGHTS.holds(folder / name, entry["sha256"]):
            raise RankEError(f"{where}: {folder / name} is not what {BASE_FILE} recorded; {fix}")
