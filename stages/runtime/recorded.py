"""What DVC records of a stage as that which it used, and whether it still is that when the stage ends.

DVC reads params.yaml and hashes the dependencies of a stage when that is over. What changed while the stage worked
would be recorded as what it used; its artifact, kept in the run-cache under the new values, would be restored for every
later run with them. So a stage notes at its beginning what dvc.yaml names, and compares before its artifact appears.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rank_e.config.loading import parse_text
from rank_e.config.reading import read_text
from rank_e.errors import RankEError
from rank_e.io.files import sha256_of
from stages.runtime.manifests import ARTIFACTS

PROJECT = Path(__file__).parents[2]
"""Where dvc.yaml and .dvcignore lie, whatever folder a stage runs in."""
PARAMS = "params.yaml"
MANIFEST = "manifest.json"  # stands for its artifact: it holds the sha256 of every file
CHEAP = 2 << 20
"""Bytes of a dependency, its smallest files first, that are hashed when a stage begins."""


class ChangedError(RankEError):
    """What a stage reads is not what it was when the stage began, or not what DVC has recorded of it."""


class Seen(NamedTuple):
    """What a file was like; sha256 is None where nobody has hashed it: it is then known by the rest alone."""

    size: int
    mtime_ns: int
    inode: int
    sha256: str | None

    @property
    def contents(self) -> list[Any]:
        """What stands for the file's contents, here and in a copy of the project."""
        return [self.size, self.sha256 or self.mtime_ns]


@cache
def _entry(name: str) -> Mapping[str, Any]:
    """A stage as dvc.yaml has it; RankEError where that has none."""
    path = PROJECT / "dvc.yaml"
    try:
        found: Mapping[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"][name]
    except (OSError, YAMLError, LookupError, TypeError):
        raise RankEError(f"{path} has no stage {name!r}: restore it from the repository") from None
    return found


@cache
def _ignored() -> tuple[str, ...]:
    """Names that are no part of any dependency: those in .dvcignore, and what Python and writers leave for a while."""
    path = PROJECT / ".dvcignore"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    given = (line.rstrip("/") for line in lines if line and not line.startswith("#"))
    return (*given, "__pycache__", "*.pyc", "*.tmp-*", ".git", ".dvc")


def sections(name: str, params: Mapping[str, Any], arm: str) -> list[str]:
    """The dotted keys of params.yaml that DVC records of a stage, such as `policy` and `arms.frozen.policy`."""
    given = _entry(name).get("params", ())
    if any(isinstance(key, Mapping) for key in given):  # the file whole
        return list(params)
    return [_filled(key, params, {"arm": arm}) for key in given]


def dependencies(name: str, params: Mapping[str, Any], arm: str, seed: int, round_id: int) -> list[Path]:
    """The files and folders that DVC records of a stage, relative to the project."""
    entry = _entry(name)
    of_rounds = entry.get("matrix", {}).get("round") == "${rounds}"  # else their ids alone
    item = {"arm": arm, "seed": seed, "round": params["rounds"][round_id - 1] if of_rounds else round_id}
    given = entry.get("deps", ())
    paths = (next(iter(dep)) if isinstance(dep, Mapping) else dep for dep in given)
    return [Path(path) for path in dict.fromkeys(_filled(path, params, item) for path in paths)]


def _filled(text: str, params: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """Text of dvc.yaml with its `${...}` replaced by their values."""

    def value(match: re.Match[str]) -> str:
        found: Any = {**params, "item": item}
        for key in re.findall(r"[^.\[\]]+", match[1]):
            found = found[int(key)] if isinstance(found, list) else found[key]
        return str(found)

    return re.sub(r"\$\{([^}]+)\}", value, text)


def values_of(keys: Iterable[str], params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of dotted keys, nested as in params.yaml; what is not there is left out."""
    found: dict[str, Any] = {}
    for key in keys:
        *outer, last = key.split(".")
        source, target = params, found
        for part in outer:
            source, target = source.get(part, {}), target.setdefault(part, {})
        if last in source:
            target[last] = source[last]
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested parameters as dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key])[:80] if key in values else "not there"


class Recorded:
    """What DVC will record of a stage, as it was when that began."""

    def __init__(self, title: str, text: str, keys: Iterable[str], paths: Iterable[Path], code: Path) -> None:
        """text: of params.yaml, of which the stage reads `keys`; code: the stage's code list.

        ChangedError where the code is no longer what is listed.
        """
        self.title, self.text, self.keys, self.code = title, text, list(keys), code
        self.seen = {path: _look(path) for path in paths}
        if edited := self._edited_code():
            fix = "`dvc repro` lists it anew and runs what it touches again"
            raise ChangedError(f"{title}: {_some(edited)} edited after the stage `code` had listed it: {fix}")

    def check(self) -> None:
        """ChangedError, in one line, names what is not what it was."""
        found = self._changed_params() + self._changed_files() + [f"{path} was edited" for path in self._edited_code()]
        if found:
            raise ChangedError(
                f"{self.title}: changed while it worked: {_some(found)}; its artifact is not written, as DVC would "
                "record it under what is there now: run again"
            )

    def data_digest(self) -> str:
        """Of the files that no manifest names: a state of other data is not taken up."""
        digest = hashlib.sha256()
        for path, files in self.seen.items():
            if not _of_artifacts(path):
                rows = [[str(file), *seen.contents] for file, seen in sorted(files.items())]
                digest.update(json.dumps([str(path), rows]).encode())
        return digest.hexdigest()

    def _changed_params(self) -> list[str]:
        """`key = value now, was value before` for every parameter that is another one."""
        text = read_text(PARAMS)
        if text == self.text:
            return []
        old, new = (
            dict(flatten(values_of(self.keys, parse_text(params).model_dump(mode="json"))))
            for params in (self.text, text)
        )
        keys = [key for key in {**old, **new} if (key in old, old.get(key)) != (key in new, new.get(key))]
        return [f"{PARAMS}: {key} = {_shown(new, key)}, was {_shown(old, key)}" for key in keys]

    def _changed_files(self) -> list[str]:
        """The files that are not what they were; one that was hashed and has its contents still is."""
        found = []
        for path, before in self.seen.items():
            now = dict(_walk(path))
            for file in sorted(before.keys() | now.keys()):
                if file not in now:
                    found.append(f"{file} is gone")
                elif file not in before:
                    found.append(f"{file} is new")
                elif not _same(file, before[file], now[file]):
                    found.append(f"{file} was written")
        return found

    def _edited_code(self) -> list[str]:
        """The source files that are not those which the stage `code` has listed for this one."""
        try:
            listed = dict(json.loads(self.code.read_text(encoding="utf-8"))) if self.code.is_file() else {}
        except (ValueError, TypeError):
            raise ChangedError(f"{self.code} is damaged: run `rank-e repair`, then `dvc repro`") from None
        return [path for path, sha256 in listed.items() if not Path(path).is_file() or sha256_of(path) != sha256]


def _some(found: list[str]) -> str:
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(found[:5]) + more


def _of_artifacts(path: Path) -> bool:
    return path.parts[:1] == ARTIFACTS.parts


def _look(path: Path) -> dict[Path, Seen]:
    """The files of a dependency, the smallest ones hashed."""
    found, left = {}, CHEAP
    for file, status in sorted(_walk(path), key=lambda row: row[1].st_size):
        left -= status.st_size
        cheap = left >= 0 and stat.S_ISREG(status.st_mode)
        sha256 = sha256_of(file) if cheap else None
        found[file] = Seen(status.st_size, status.st_mtime_ns, status.st_ino, sha256)
    return found


def _same(file: Path, before: Seen, now: os.stat_result) -> bool:
    if (before.size, before.mtime_ns, before.inode) == (now.st_size, now.st_mtime_ns, now.st_ino):
        return True
    return before.sha256 is not None and now.st_size == before.size and sha256_of(file) == before.sha256


def _walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file of a dependency as DVC sees it, of an artifact the manifest alone."""
    if not path.is_dir():
        yield from _stat(path)
        return
    for folder, folders, names in os.walk(path, followlinks=True):
        if _of_artifacts(path) and MANIFEST in names:
            names = [MANIFEST]
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in names:
            if not _hidden(name):
                yield from _stat(Path(folder, name))


def _hidden(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _ignored())


def _stat(file: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        yield file, file.stat()
    except OSError:  # not there, or no longer: seen as that
        return
