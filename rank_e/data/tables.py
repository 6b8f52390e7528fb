"""Tables of prompts and captions: CSV, TSV, JSON, JSONL and parquet, as columns of values with their places.

Delimited files are read by RFC 4180 in its strict sense. Many published prompt files are not such files: one
column, every line a prompt, commas and quotation marks as they come. So a file that is no strict CSV, or whose
rows differ in length from its header, is read again as plain lines split at the delimiter (not at all under a
header of one column), and refused if that does not fit either. Nothing is guessed row by row.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rank_e.data.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
PROMPT_COLUMNS = ("prompt", "caption", "text", "prompts", "captions")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


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
        return [value.strip() for value in values]


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
    held = ", ".join(repr(name) for name in names) or "none"
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{place}: no column {wanted!r}, only {held}; fix {parameter}")
        return wanted
    found = [name for name in names if name.casefold() in known]
    if len(found) != 1:
        fault = f"no column called {', '.join(known)}" if not found else f"{' and '.join(found)} both fit"
        raise DataError(f"{place}: {fault}; choose one of its columns ({held}) by {parameter}")
    return found[0]


def check_file(path: Path) -> None:
    """DataError unless `path` is a file with something in it."""
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'does not exist'}; fix the path")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; download or write it again")


def read_text(path: Path) -> str:
    """A UTF-8 file's text (a byte order mark is dropped). DataError names the line that is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: is not UTF-8; save the file as UTF-8") from None


def text_lines(text: str) -> list[tuple[int, str]]:
    """Lines that are not blank with their numbers from 1; only \\n and \\r\\n end a line."""
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _delimited(path: Path, delimiter: str) -> Table:
    text = read_text(path)
    rows, numbers, fault = _strict(path, text, delimiter)
    if fault is not None:
        rows, numbers = _plain(path, text, delimiter, fault)
    if not rows:
        raise DataError(f"{path}: holds no header and no rows; give a file with both")
    names = [name.strip() for name in rows[0]]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path} line {numbers[0]}: column {name!r} stands there twice; rename one")
    body = rows[1:]

    def column(name: str) -> list[Any]:
        index = names.index(name)
        return [row[index] for row in body]

    return Table(path, names, len(body), column, lambda row: f"{path} line {numbers[row + 1]}")


def _strict(path: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int], str | None]:
    """Rows and line numbers by RFC 4180, or the first fault in words."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    start = 1
    try:
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):
                rows.append(row)
                numbers.append(start)
                if len(row) != len(rows[0]):
                    fault = f"has {len(row)} fields, the header has {len(rows[0])}"
                    return rows, numbers, f"{path} line {start}: {fault}"
            start = reader.line_num + 1
    except csv.Error as error:
        return rows, numbers, f"{path} line {start}: {error}"
    return rows, numbers, None


def _plain(path: Path, text: str, delimiter: str, fault: str) -> tuple[list[list[str]], list[int]]:
    """Rows and line numbers without quoting; raises `fault` where lines do not fit the header."""
    lines = text_lines(text)
    width = lines[0][1].count(delimiter) + 1
    rows = [line.split(delimiter) if width > 1 else [line] for _, line in lines]
    for (number, _), row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise DataError(f"{fault}; quote the fields that hold {delimiter!r} or quotation marks")
        for field in row:
            # What only a writer that quotes would write: plain reading would keep its quotation marks as text.
            quoted = _QUOTED.fullmatch(field) is not None and (delimiter in field or '""' in field)
            if quoted or (field.startswith('"') and field.count('"') % 2):
                raise DataError(f"{fault}, yet line {number} is quoted; quote all fields that need it, or none")
    return rows, [number for number, _ in lines]


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
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON ({error}); fix it") from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: is {_kind(value)}, not an object; write {{...}} with a text in it")
    return value


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def refused(error: Exception) -> DataError:
        return DataError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]}); write it again")

    try:
        with parquet.ParquetFile(path) as file:
            names, length = list(file.schema_arrow.names), file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise refused(error) from None

    def column(name: str) -> list[Any]:
        try:
            return parquet.read_table(path, columns=[name], partitioning=None).column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise refused(error) from None

    return Table(path, names, length, column, lambda row: f"{path} row {row}")


def _kind(value: Any) -> str:
    names = {type(None): "missing", list: "a list", dict: "an object", str: "a text", bool: "a boolean"}
    return names.get(type(value), f"a {type(value).__name__}")
