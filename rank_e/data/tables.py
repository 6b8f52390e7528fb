"""Tables of prompts and captions: CSV, TSV, JSON, JSONL and parquet, as columns of values with their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rank_e.data.delimited import read_delimited
from rank_e.data.errors import DataError
from rank_e.data.text_files import check_file, read_text, shown, text_lines, unusable
from rank_e.errors import listed
from rank_e.io.json_text import parse_json

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
PROMPT_COLUMNS = ("prompt", "caption", "text", "prompts", "captions")


@dataclass(frozen=True)
class Table:
    """Column `names`, the number of rows, `column(name)` -> values, and `place(row)` -> "FILE line 7"."""

    path: Path
    names: list[str]
    length: int
    column: Callable[[str], list[Any]]
    place: Callable[[int], str]

    def texts(self, name: str) -> list[str]:
        """A column as texts, outer white space removed. DataError names the first that is no text or empty."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(f"{self.place(row)}: {name} is {_kind(value)}, not text; write a text there")
            if not value.strip():
                raise DataError(f"{self.place(row)}: {name} is empty; write a text there or remove the row")
        stripped = {value: value.strip() for value in dict.fromkeys(values)}  # equal texts stay one object
        return [stripped[value] for value in values]

    def prompts(self, name: str) -> list[str]:
        """`texts`, each of them fit to be a prompt (`text_files.unusable`)."""
        texts = self.texts(name)
        for text in dict.fromkeys(texts):
            if (fault := unusable(text)) is not None:
                place = self.place(texts.index(text))
                raise DataError(f"{place}: {name} {fault}; save the file as UTF-8 without it")
        return texts


def read_table(path: str | Path) -> Table:
    """The table at `path`, by its extension (one of TABLES), at least one row.

    DataError: missing, empty, unknown extension, not UTF-8, not what its extension says; with the line.
    """
    path = Path(path)
    check_file(path)
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise DataError(f"{path}: unknown kind of table {suffix!r}; give one of {', '.join(TABLES)}")
    if suffix == ".parquet":
        table = _parquet(path)
    elif suffix in DELIMITERS:
        table = _delimited(path, DELIMITERS[suffix])
    else:
        table = _json(path, lines=suffix == ".jsonl")
    if table.length == 0:
        raise DataError(f"{path}: holds no rows; give a file with at least one")
    return table


def find_column(names: Sequence[str], wanted: str | None, known: Sequence[str], place: str, parameter: str) -> str:
    """The column `wanted`, or the only one of `names` that is in `known` (letter case ignored).

    DataError names `place` (a file or a sample) and `parameter`, which chooses a column: none or several fit.
    """
    held = listed([shown(name) for name in names]) or "none"
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{place}: no column {wanted!r}, only {held}; fix {parameter}")
        found = [wanted] * names.count(wanted)
    else:
        found = [name for name in names if name.casefold() in known]
    if len(set(found)) > 1 or not found:
        fault = f"no column called {', '.join(known)}" if not found else f"{' and '.join(found)} both fit"
        raise DataError(f"{place}: {fault}; choose one of its columns ({held}) by {parameter}")
    if len(found) > 1:
        raise DataError(f"{place}: column {shown(found[0])} stands there twice; rename one")
    return found[0]


def _delimited(path: Path, delimiter: str) -> Table:
    rows, numbers = read_delimited(path, delimiter)
    names = [name.strip() for name in rows[0]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} line {numbers[0]}: column {shown(twice)} stands there twice; rename one")
    body = rows[1:]

    def column(name: str) -> list[Any]:
        index = names.index(name)
        return [row[index] for row in body]

    return Table(path, names, len(body), column, lambda row: f"{path} line {numbers[row + 1]}")


def _json(path: Path, lines: bool) -> Table:
    """Rows are objects; a JSON file may also be a list of texts (the benchmark prompts of HPSv2 are)."""
    text = read_text(path)
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    if lines:
        for number, line in text_lines(text):
            places.append(f"{path} line {number}")
            rows.append(_object(_load_json(line, places[-1]), places[-1]))
    else:
        values = _load_json(text, str(path))
        if not isinstance(values, list):
            raise DataError(f"{path}: holds {_kind(values)}, not a list; give a list of texts or of objects")
        places = [f"{path} item {number}" for number in range(len(values))]
        items = [{"prompt": value} if isinstance(value, str) else value for value in values]
        rows = [_object(item, place) for item, place in zip(items, places, strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in row))

    def column(name: str) -> list[Any]:
        return [row.get(name) for row in rows]

    return Table(path, names, len(rows), column, lambda row: places[row])


def _load_json(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{place}: is not JSON ({error}); fix it") from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: is {_kind(value)}, not an object; write {{...}} with a text in it")
    return value


def _parquet(path: Path) -> Table:
    from rank_e.data.parquet import read_column, read_schema  # pyarrow is large, and few lists are parquet

    names, length = read_schema(path)
    return Table(path, names, length, lambda name: read_column(path, name), lambda row: f"{path} row {row}")


def _kind(value: Any) -> str:
    names = {type(None): "missing", list: "a list", dict: "an object", str: "a text", bool: "a boolean"}
    return names.get(type(value), f"a {type(value).__name__}")
