"""Rows of CSV and TSV files.

They are read by RFC 4180 in its strict sense. Many published prompt files are not such files: one column, every line
a prompt, commas and quotation marks as they come. So a file that is no strict CSV, or whose rows differ in length from
its header, is read again as plain lines split at the delimiter (not at all under a header of one column), and refused
if that does not fit either. Nothing is guessed row by row, and no quotation mark that quotes becomes text.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from rank_e.data.errors import DataError
from rank_e.data.text_files import read_text, text_lines

SEPARATORS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_BESIDE = re.compile(r"""(?:^|(?<=[,\t]))"(?:[^"]|"")*"(?=[,\t]\S)|(?<=[,\t])"(?:[^"]|"")*"(?=[,\t]|$)""")
"""A quoted field beside a delimiter, as a writer of tables puts it; in prose white space is between."""
_EXCEL = re.compile(r'"?sep=."?[,;\t]*', re.IGNORECASE)  # what Excel writes on a line above the header
_BACKSLASHES = r"""quotation marks stand behind backslashes; write them doubled (Spark: option("escape", '"'))"""


def read_delimited(path: Path, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """The rows of a file, header first, all as long as it, and the line on which each starts. DataError with a line."""
    text = read_text(path)
    _check_separator(path, text, delimiter)
    rows, numbers, fault = _strict(path, text, delimiter)
    for number, row in zip(numbers, rows, strict=True):
        if any('\\"' in field for field in row):
            raise DataError(f"{path} line {number}: {_BACKSLASHES}")
        if any(field[:1].isspace() and _encloses(field) for field in row):
            raise DataError(f"{path} line {number}: white space before a quoted field; remove it")
    if fault is not None:
        rows, numbers = _plain(path, text, delimiter, fault)
    if not rows:
        raise DataError(f"{path}: holds no header and no rows; give a file with both")
    for number, row in zip(numbers[1:], rows[1:], strict=True):
        if [field.lstrip("\ufeff") for field in row] == rows[0]:
            raise DataError(f"{path} line {number}: repeats the header, as where files were joined; remove it")
    return rows, numbers


def _check_separator(path: Path, text: str, delimiter: str) -> None:
    """DataError where the header is separated by something else, or Excel's `sep=` stands above it."""
    number, header = next(iter(text_lines(text)), (1, ""))
    if _EXCEL.fullmatch(header) is not None:
        raise DataError(
            f"{path} line {number}: {header!r} is Excel's, not a header; save with {delimiter!r} without it"
        )
    bare = _QUOTED.sub("", header)
    other = next((sign for sign in SEPARATORS if sign in bare), None)
    if delimiter not in bare and other is not None:
        raise DataError(f"{path} line {number}: the header is separated by {other!r}; save the file with {delimiter!r}")


def _strict(path: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int], str | None]:
    """Rows and line numbers by RFC 4180, or the first fault in words."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    start = 1
    limit = csv.field_size_limit(max(len(text), 1))  # of the whole process: put back below
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
    finally:
        csv.field_size_limit(limit)
    return rows, numbers, None


def _plain(path: Path, text: str, delimiter: str, fault: str) -> tuple[list[list[str]], list[int]]:
    """Rows and line numbers without quoting; raises `fault` where lines do not fit the header."""
    lines = text_lines(text)
    width = lines[0][1].count(delimiter) + 1
    rows = [line.split(delimiter) if width > 1 else [line] for _, line in lines]
    for (number, line), row in zip(lines, rows, strict=True):
        if '\\"' in line:
            raise DataError(f"{path} line {number}: {_BACKSLASHES}")
        if len(row) != width:
            raise DataError(f"{fault}; quote the fields that hold {delimiter!r} or quotation marks")
        if width == 1 and (delimiter in line and _BESIDE.search(line.strip()) is not None):
            raise DataError(
                f"{fault}, and line {number} holds a quoted field beside others; name all columns in line 1"
            )
        for field in row:
            # What only a writer that quotes would write: plain reading would keep its quotation marks as text.
            if _encloses(field) or (field.lstrip().startswith('"') and field.count('"') % 2):
                raise DataError(f"{fault}, yet line {number} is quoted; quote all fields that need it, or none")
    return rows, [number for number, _ in lines]


def _encloses(field: str) -> bool:
    """Whether a field, but for white space around it, is one quoted text."""
    return _QUOTED.fullmatch(field.strip()) is not None
