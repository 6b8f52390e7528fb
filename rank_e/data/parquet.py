"""Columns of parquet files, in pieces: a value that repeats is held once, and a file never grows without bound.

Parquet packs a value that repeats into a few bits, so that kilobytes may hold gigabytes of text, or billions of rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from rank_e.data.errors import DataError

ROWS = 8192  # read at once
_DICTIONARY = frozenset({"PLAIN", "RLE", "BIT_PACKED", "RLE_DICTIONARY", "PLAIN_DICTIONARY"})
"""The encodings of which Arrow can keep a column's dictionary, instead of a copy of a value in each of its rows."""
GROWTH, SMALL = 1000, 1 << 28
"""A column may take this many times its file's bytes, or 256 MiB, in memory; no published list of texts comes near."""


def read_schema(path: Path) -> tuple[list[str], int]:
    """The names of a file's columns, as often as they stand there, and its number of rows. DataError."""
    try:
        with parquet.ParquetFile(path) as file:
            return list(file.schema_arrow.names), int(file.metadata.num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _refused(path, error) from None


def read_column(path: Path, name: str) -> list[Any]:
    """The values of one column, equal texts as one object. DataError: damaged, not UTF-8, or far larger than its file.

    `name` stands once among the names of `read_schema`.
    """
    room = max(SMALL, GROWTH * path.stat().st_size)
    values: list[Any] = []
    texts: dict[Any, Any] = {}
    held = 0
    try:
        with parquet.ParquetFile(path) as file:
            rows, kind = file.metadata.num_rows, file.schema_arrow.field(name).type
            textual = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
            mine = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == name.split(".")[0]]
            _check_room(path, max(8 * rows, sum(chunk.total_uncompressed_size for chunk in mine)), room)
        packed = textual and all(_DICTIONARY.issuperset(chunk.encodings) for chunk in mine)
        with parquet.ParquetFile(path, read_dictionary=[name] if packed else None) as file:
            for batch in file.iter_batches(ROWS, columns=[name]):
                if batch.num_columns != 1:
                    raise DataError(f"{path}: column {name!r} and one within another share a name; rename one")
                column = batch.column(0)
                coded = isinstance(column, pa.DictionaryArray)
                known = _decoded(path, column.dictionary if coded else column, column, len(values))
                if textual:
                    held += sum(len(text) for text in known if text is not None and text not in texts)
                    known = [texts.setdefault(text, text) for text in known]
                values += [None if n is None else known[n] for n in column.indices.to_pylist()] if coded else known
                _check_room(path, 8 * len(values) + held, room)
    except (pa.ArrowException, OSError) as error:
        raise _refused(path, error) from None
    if len(values) != rows:
        raise DataError(f"{path}: says {rows} rows and holds {len(values)}; write it again")
    return values


def _decoded(path: Path, array: Any, column: Any, first: int) -> list[Any]:
    """The values of an array: a piece of the column that begins with row `first`, or its dictionary."""
    try:
        return list(array.to_pylist())
    except (OverflowError, LookupError) as error:  # a time zone that nobody knows, a date that Python has not
        raise _refused(path, error) from None
    except UnicodeDecodeError:
        row = next(first + place for place, value in enumerate(column) if not _decodes(value))
        raise DataError(f"{path} row {row}: is not UTF-8; write the file again from UTF-8") from None


def _decodes(value: Any) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _check_room(path: Path, needed: int, room: int) -> None:
    if needed > room:
        size = f"{path.stat().st_size} bytes that unpack to more than {room / 2**20:.0f} MiB"
        raise DataError(f"{path}: {size}, as no list of texts does; write it again, or give it as text")


def _refused(path: Path, error: Exception) -> DataError:
    line = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return DataError(f"{path}: cannot be read as parquet ({line}); write it again")
