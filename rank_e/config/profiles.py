"""Profiles: a file in `profiles/` is a whole params file, or `extends:` another and holds only what differs.

DVC reads params.yaml whole, so `resolve` lays one over the other and writes the whole. It writes as DVC's own writer
does (`dvc exp run -S`): block style, since that writer drops quotation marks which flow style needs and rewrites flow
lists; no blank line or comment behind a list, since it loses them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from rank_e.config.loading import Params, merge, parse_text
from rank_e.config.messages import show
from rank_e.config.reading import ConfigError, plain, read_text, read_values
from rank_e.errors import nearest

NAMED = ("arms", "ranking.rewards", "evaluation.distances", "evaluation.scores", "evaluation.benchmarks")
"""Mappings of things by name: `NAME: null` in a profile takes out one that the other profile has."""
_COMMENT = re.compile(r"""(?>(?<=[\s[{,])(?:"[^"]*"|'[^']*')|[^#]|(?<!\s)#)*+(#.*)""")  # not a # within a text
Key = tuple[str, ...]  # a key with the sections that it lies in


class Comment(NamedTuple):
    """The lines of comment above a key, the one beside it ("" for none) and the column where that begins."""

    above: tuple[str, ...]
    beside: str
    column: int


class Profile(NamedTuple):
    """Values as they are written (1.0e-4 stays 1.0e-4), the comments by key, and those at the top of the file."""

    values: dict[str, Any]
    comments: dict[Key, Comment]
    head: tuple[str, ...]


def load_profile(path: str | Path) -> Params:
    """A profile as parameters; ConfigError lists every problem, one line each."""
    return parse_text(resolve(path), str(path))


def resolve(path: str | Path) -> str:
    """The text of the whole params file that a profile stands for; comments stay with the values that they are about.

    ConfigError: no such profile, one that extends itself, or what is no YAML mapping.
    """
    profile = _extended(Path(path), ())
    return "\n".join([*profile.head, *_lines(profile.values, profile.comments), ""])


def _extended(path: Path, below: tuple[str, ...]) -> Profile:
    """A profile with all that it extends; `below` are the names of those that extend it."""
    if path.stem in below:
        raise ConfigError(f"{path}: extends itself: {' extends '.join([*below, path.stem])}; remove one `extends`")
    if not path.is_file():
        names = sorted(file.stem for file in path.parent.glob("*.yaml"))
        known = (", ".join(names) or "none here") + nearest(path.stem, names)
        place = f"{path.with_stem(below[-1])}: extends {path.stem}, but " if below else ""
        raise ConfigError(f"{place}{path} does not exist: profiles are {known}")
    own = _read(path)
    if "extends" not in own.values:
        return own
    base = own.values.pop("extends")
    if not isinstance(base, str) or base != Path(base).name:
        raise ConfigError(f"{path}: extends = {show(base)}: must be the name of a profile in {path.parent}")
    other = _extended(path.with_name(f"{base}.yaml"), (*below, path.stem))
    values, there = merge(other.values, own.values), dict(_walk(other.values))
    overridden = {key: value for key, value in _walk(own.values) if not isinstance(value, dict)}
    for key, value in overridden.items():
        if value is None and ".".join(key[:-1]) in NAMED:
            if key not in there:
                raise ConfigError(f"{path}: {'.'.join(key)} = null: {base} has none to take out; remove the line")
            del reduce(getitem, key[:-1], values)[key[-1]]
    comments = {key: comment for key, comment in other.comments.items() if key not in overridden} | own.comments
    return Profile(values, comments, own.head or other.head)


def _read(path: Path) -> Profile:
    text = read_text(path)
    values = read_values(text, str(path))
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{path} must be a mapping of sections, found {show(values)}")
    _, unfit = plain(values, str(path))
    if unfit:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in unfit.values()))
    data = YAML().load(text)
    lines = text.splitlines()
    comments = dict(_comments(data, lines))
    return Profile(dict(data), comments, _above(lines, data.lc.key(next(iter(data)))[0]))


def _comments(data: CommentedMap, lines: list[str], place: Key = ()) -> Iterator[tuple[Key, Comment]]:
    """The comments of keys that begin a line."""
    for number, (key, value) in enumerate(data.items()):
        if data.fa.flow_style():
            return
        line = data.lc.key(key)[0]
        beside = _COMMENT.match(lines[line])
        above = _above(lines, line) if place or number else ()
        if above or beside:
            yield (*place, key), Comment(above, *((beside[1], beside.start(1)) if beside else ("", 0)))
        if isinstance(value, CommentedMap):
            yield from _comments(value, lines, (*place, key))


def _above(lines: list[str], line: int) -> tuple[str, ...]:
    """The lines of comment right above a line."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return tuple(text.strip() for text in lines[first:line])


def _walk(values: dict[str, Any], place: Key = ()) -> Iterator[tuple[Key, Any]]:
    for key, value in values.items():
        yield (*place, key), value
        if isinstance(value, dict):
            yield from _walk(value, (*place, key))


def _lines(values: dict[str, Any], comments: dict[Key, Comment], place: Key = ()) -> Iterator[str]:
    """Block style, a blank line between the sections of the file."""
    before: Any = []
    for key, value in values.items():
        above, beside, column = comments.get((*place, key), Comment((), "", 0))
        body = _dumped(value) if isinstance(value, list) and value else []
        inside = list(_lines(value, comments, (*place, key))) if isinstance(value, dict) else []
        indent = "  " * len(place)
        line = f"{indent}{key}:" if body or inside else f"{indent}{key}: {_dumped([value])[0].removeprefix('- ')}"
        if not place and not isinstance(before, list):
            yield ""
        yield from (indent + text for text in above)
        yield f"{line.ljust(column - 3)}   {beside}" if beside else line
        yield from (indent + text for text in body)
        yield from inside
        before = value


def _dumped(values: list[Any]) -> list[str]:
    if values == [None]:
        return ["- null"]  # said, where the writer leaves the place empty
    stream, yaml = io.StringIO(), YAML()
    yaml.width = 10_000  # a line a value
    yaml.dump(_plain(values), stream)
    return stream.getvalue().splitlines()


def _plain(value: Any) -> Any:
    """Without the style in which it was written."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
