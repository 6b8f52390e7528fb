"""What a manifest says besides its files: the cell that an artifact's place names, and the hash of its own text."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLACES = (
    r"(?P<arm>[^/]+)/s(?P<seed>\d+)/r(?P<round>\d+)/[^/]+",
    r"prompts/s(?P<seed>\d+)/r(?P<round>\d+)",
    r"sft/s(?P<seed>\d+)/[^/]+",
)
"""Where artifacts of a cell lie below the folder artifacts; the others are of the whole run."""


def cell_at(path: str | Path) -> dict[str, Any]:
    """{arm, seed, round} as far as an artifact's path names them; nothing for one of the whole run, or elsewhere."""
    place = Path(path).as_posix()
    found = (re.search(f"(?:^|/)artifacts/{form}$", place) for form in PLACES)
    named = next((match.groupdict() for match in found if match), {})
    return {name: value if name == "arm" else int(value) for name, value in named.items()}


def project_of(path: Path) -> Path:
    """The folder that an artifact's inputs are named from."""
    parts = path.parts
    return Path(*parts[: -1 - parts[::-1].index("artifacts")]) if "artifacts" in parts else Path()


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
