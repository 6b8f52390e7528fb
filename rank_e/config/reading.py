"""The text of a params file as plain values: mappings by text, lists, text, numbers, true, false and null.

YAML can say more than a params file may: keys that are no text, values that hold themselves, aliases that multiply,
text that no file name or terminal takes. All of that is found here, in bounded time, before anything else walks through
the values.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node, ScalarNode
from ruamel.yaml.scanner import Scanner, ScannerError

from rank_e.config.messages import join, show
from rank_e.errors import RankEError

CHARACTERS = 200_000
"""Longest params file."""
TOKENS = 10_000
"""Most tokens of YAML in it (keys, values, brackets); the parser takes half a second for as many."""
DEPTH = 32
"""Mappings and lists within each other, at most."""
VALUES = 10_000
"""Values of a params file, at most, what an alias repeats counted every time."""
TOO_DEEP = f"mappings and lists lie in each other more than {DEPTH} deep; params need 7"
BITS = 1024
"""Largest whole number, at most, in bits: more is no setting, and Python refuses to print it."""


class ConfigError(RankEError):
    """A params file is missing, unreadable or wrong; one line for each problem."""


class Unreadable(str):
    """The text of a value that its tag or its look makes a number, date or bytes, and that is none."""


class _Constructor(SafeConstructor):
    """Values that cannot be what they look like stay text, so that they can be named by their keys."""

    def construct_non_recursive_object(self, node: Node, tag: str | None = None) -> Any:
        if not isinstance(node, ScalarNode):
            return super().construct_non_recursive_object(node, tag)
        try:
            value = super().construct_non_recursive_object(node, tag)
        except (ArithmeticError, AttributeError, LookupError, ValueError):
            return Unreadable(node.value)
        huge = isinstance(value, int) and value.bit_length() > BITS
        return Unreadable(node.value) if huge else value


class _Scanner(Scanner):
    """Stops where brackets lie too deep, for its time grows with the square of that, and after TOKENS."""

    def fetch_more_tokens(self) -> Any:
        if self.tokens_taken > TOKENS:
            raise ScannerError(None, None, f"more than {TOKENS:,} keys, values and brackets", self.reader.get_mark())
        return super().fetch_more_tokens()

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:
        if self.flow_level >= DEPTH:
            raise ScannerError(None, None, TOO_DEEP, self.reader.get_mark())
        super().fetch_flow_collection_start(TokenClass, to_push)


def read_text(path: str | Path) -> str:
    """The text of a params file; ConfigError if it is no file, or not text in UTF-8."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is no file: put the params there, or `rank-e profile shapes`")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        fix = "run in the project's folder, or `rank-e profile shapes`"
        raise ConfigError(f"{path} does not exist: {fix}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not readable as YAML: {error}; save it as UTF-8") from None


def read_values(text: str, name: str) -> Any:
    """What the text of a params file, which errors call `name`, holds; ConfigError if it is not YAML, or too much."""
    if len(text) > CHARACTERS:
        raise ConfigError(f"{name} has {len(text):,} characters: a params file has at most {CHARACTERS:,}")
    # DVC reads params with the same parser (YAML 1.2): 1e-4 is a number here as it is there.
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Scanner = _Constructor, _Scanner
    try:
        return yaml.load(text)
    except YAMLError as error:
        raise ConfigError(f"{name} is not readable as YAML: {_words(error)}") from None
    except RecursionError:
        raise ConfigError(f"{name} is not readable as YAML: {TOO_DEEP}") from None


def _words(error: YAMLError) -> str:
    """A parser's message in one line that begins with the place, without what it says of its own interface."""
    if isinstance(error, MarkedYAMLError) and error.problem and (mark := error.problem_mark or error.context_mark):
        text = error.problem
        if twice := re.match(r"found duplicate key (.*?) with value", text, re.DOTALL):
            text = f"{twice[1]} is there twice; remove one"
        elif "'\\t'" in text:
            text = "a tab; indent with spaces"
        text = f"line {mark.line + 1}, column {mark.column + 1}: {text}"
    else:
        text = str(error)
    text = "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))
    return text if len(text) <= 300 else text[:297] + "..."


def plain(data: Any, name: str) -> tuple[Any, dict[str, str]]:
    """The values by keys that are text alone, and by its key a line for each that params cannot hold.

    ConfigError, naming the key, for values that hold themselves, lie too deep or are too many.
    """
    found: dict[str, str] = {}
    counted = 0

    def copy(value: Any, place: tuple[str, ...], around: tuple[int, ...]) -> Any:
        nonlocal counted
        counted += 1
        key = join(place) or "the file"
        if counted > VALUES:
            fix = "write fewer, and no alias that repeats others"
            raise ConfigError(f"{name}: {join(place[:2])}: more than {VALUES:,} values up to here; {fix}")
        if isinstance(value, dict | list | tuple | set):
            if id(value) in around:
                raise ConfigError(f"{name}: {key}: holds itself by an alias; write its value out")
            if len(place) > DEPTH:
                raise ConfigError(f"{name}: {join(place[:2])}: {TOO_DEEP}")
            around = (*around, id(value))
        if isinstance(value, dict):
            for other, inner in value.items():
                if not isinstance(other, str):
                    shown = join((*place, _shown(other)))
                    found[shown] = f"{shown} = {show(inner)}: keys must be text; correct it, or put it in quotes"
            return {k: copy(inner, (*place, k), around) for k, inner in value.items() if isinstance(k, str)}
        if isinstance(value, list):
            return [copy(inner, (*place, str(index)), around) for index, inner in enumerate(value)]
        if isinstance(value, Unreadable):
            found[key] = f"{key} = {show(value)}: must be a number of at most 300 digits, a date, or text in quotes"
        elif isinstance(value, str) and any(_unprintable(value)):
            found[key] = f"{key} = {show(value)}: must be text without control characters"
        return value

    return copy(data, (), ()), found


def _shown(key: Any) -> str:
    return show(key).strip('"')


def _unprintable(text: str) -> Iterator[bool]:
    """For each character whether it is a control character other than those of lines, or half a pair of UTF-16."""
    return (sign not in "\t\n\r" and unicodedata.category(sign) in ("Cc", "Cs") for sign in text)
