"""The plan of the house: imports point one way, no two folders import each other, files can be read at a sitting."""

import ast
from itertools import combinations
from pathlib import Path

import pytest

from stages.runtime.imports import Sources

ROOT = Path(__file__).parents[1]
PACKAGES = ("rank_e", "stages", "pipeline", "base")
BELOW = {"rank_e": (), "stages": ("rank_e",), "pipeline": ("rank_e", "stages"), "base": ("rank_e", "stages")}
"""What each package may import of the others."""
LINES = 300


def room(module: str) -> str:
    """The folder of a module: `rank_e.data.tables` lies in `rank_e.data`, `rank_e.seeds` in `rank_e`."""
    path = ROOT / module.replace(".", "/")
    return module if path.is_dir() else module.rpartition(".")[0]


def imports() -> dict[str, set[str]]:
    """For each folder of the packages the folders that its files import, anywhere in them."""
    found: dict[str, set[str]] = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        here = ".".join(path.relative_to(ROOT).parent.parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            own = {room(name) for name in names if name.partition(".")[0] in PACKAGES}
            found.setdefault(here, set()).update(own - {here})
    return found


def test_packages_import_downwards() -> None:
    for here, there in imports().items():
        package = here.partition(".")[0]
        assert {room.partition(".")[0] for room in there} <= {package, *BELOW[package]}, here


def test_no_two_folders_import_each_other() -> None:
    """A folder within another is a part of it: `pipeline.preflight` reads `pipeline.graph`, the command line both."""
    found = imports()
    pairs = [(a, b) for a, b in combinations(sorted(found), 2) if not b.startswith(f"{a}.")]
    assert [(a, b) for a, b in pairs if b in found[a] and a in found[b]] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    sources = Sources(ROOT, {})
    files = [str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    left = {file: {other for other in sources.imports(file) if not other.endswith("__init__.py")} for file in files}
    while free := {file for file, others in left.items() if not others - {file}}:
        left = {file: others - free for file, others in left.items() if file not in free}
    assert left == {}


def test_the_embedded_world_is_reached_by_dotted_path_alone() -> None:
    assert [here for here, there in imports().items() if "rank_e.shapes" in there] == ["base"]


@pytest.mark.parametrize("package", PACKAGES)
def test_files_can_be_read_at_a_sitting(package: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LINES
    }
    assert long == {}
