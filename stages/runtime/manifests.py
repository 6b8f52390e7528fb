"""What is said of an artifact besides its files: its cell, by its place; its manifest's hash; what was removed."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rank_e.io.json_text import parse_json

ARTIFACTS, MANIFEST = Path("artifacts"), "manifest.json"
PLACES = (
    r"(?P<arm>[^/]+)/s(?P<seed>\d+)/r(?P<round>\d+)/[^/]+",
    r"prompts/s(?P<seed>\d+)/r(?P<round>\d+)",
    r"sft/s(?P<seed>\d+)/[^/]+",
)
"""Where artifacts of a cell lie below the folder artifacts; the others are of the whole run."""

_NAME, _HASH = re.compile(r"\w+\.safetensors"), re.compile(r"[0-9a-f]{32}(?:\.dir)?")
REMOVED = "removed.json"
"""What `rank-e gc` has removed from the artifact that it lies in: `files`, {name: md5 of DVC}, and `trees`, the hashes
that DVC knew the artifact by before.
"""


def cell_at(path: str | Path) -> dict[str, Any]:
    """{arm, seed, round} as far as an artifact's path names them; nothing for one of the whole run, or elsewhere."""
    place = Path(path).as_posix()
    found = (re.search(f"(?:^|/)artifacts/{form}$", place) for form in PLACES)
    named = next((match.groupdict() for match in found if match), {})
    return {name: value if name == "arm" else int(value) for name, value in named.items()}


def kind_at(path: str | Path) -> str:
    """What an artifact's place says of its kind."""
    place = Path(path)
    return "prompts" if place.parts[-3:-2] == ("prompts",) else place.name


def project_of(path: Path) -> Path:
    """The folder that an artifact's inputs are named from."""
    parts = path.parts
    return Path(*parts[: -1 - parts[::-1].index("artifacts")]) if "artifacts" in parts else Path()


def removed_from(path: Path) -> set[str]:
    """The files that were removed from an artifact and are not there; ValueError if its list is damaged."""
    marker = path / REMOVED
    if not marker.is_file():
        return set()
    return {name for name in read_removed(marker)["files"] if not (path / name).exists()}


def read_removed(marker: Path) -> dict[str, Any]:
    """The list `REMOVED`; ValueError where it is not one: names that lead elsewhere, and what is no hash, among it."""
    said = parse_json(marker.read_text(encoding="utf-8"))
    if not isinstance(said, dict) or said.keys() != {"files", "trees"}:
        raise ValueError("no list of removed files")
    files, trees = said["files"], said["trees"]
    if not isinstance(files, dict) or not isinstance(trees, list) or not all(map(_NAME.fullmatch, files)):
        raise ValueError("no list of removed files")
    if not all(isinstance(oid, str) and _HASH.fullmatch(oid) for oid in (*files.values(), *trees)):
        raise ValueError("no hashes")
    return said


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the sha256 of its own text."""
    return {**manifest, "sha256": hashlib.sha256(text_of(manifest).encode()).hexdigest()}


def text_of(manifest: Mapping[str, Any]) -> str:
    """The one text of a manifest."""
    return json.dumps(manifest, sort_keys=True, indent=2) + "\n"


def not_plain(value: Any, place: str) -> str | None:
    """Where in a nested value stands what JSON cannot hold."""
    if isinstance(value, Mapping):
        found = (not_plain(item, f"{place}.{key}") for key, item in value.items())
        return next((item for item in found if item), None)
    if isinstance(value, list | tuple):
        found = (not_plain(item, f"{place}.{index}") for index, item in enumerate(value))
        return next((item for item in found if item), None)
    plain = value is None or isinstance(value, str | bool | int)
    finite = isinstance(value, float) and value == value and abs(value) != float("inf")
    return None if plain or finite else f"{place} = {value!r}: numbers must be finite"
