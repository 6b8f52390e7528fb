"""Prompts alone: from a text file (a prompt a line) or from a column of a table."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from rank_e.data.errors import DataError
from rank_e.data.tables import PROMPT_COLUMNS, TABLES, find_column, read_table
from rank_e.data.text_files import check_file, read_text, shown, text_lines, unusable
from rank_e.io.json_text import parse_json

CATEGORY_COLUMNS = ("category", "tag", "style")


@dataclass(frozen=True)
class PromptRow:
    """A prompt: its index in the file from 0, its text, and its category ("" where the file has none)."""

    index: int
    text: str
    category: str = ""


def open_prompts(path: str | Path, column: str | None = None, category: str | None = None) -> list[PromptRow]:
    """The prompts of a .txt, .csv, .tsv, .json, .jsonl or .parquet file, in the file's order, repeats kept.

    .txt: every line that is not blank. Tables: `column`, or the only column called as one of PROMPT_COLUMNS
    (letter case ignored); `category`, or the first column called as one of CATEGORY_COLUMNS. Outer white space
    is removed. Raises DataError naming file and line: missing or empty file, no column or several that fit,
    a prompt that is missing, empty, no text, or holds NUL or half a character.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        if column is not None or category is not None:
            raise DataError(f"{path}: a text file has no column {column or category!r}; name none for .txt")
        check_file(path)
        lines = text_lines(read_text(path))
        if not lines:
            raise DataError(f"{path}: holds no prompt, only blank lines; write a prompt on each line")
        if (kind := _other_kind(lines)) is not None:
            raise DataError(f"{path}: holds {kind}, not a prompt on each line; name it so, or write prompts alone")
        for number, line in lines:
            if line.startswith("\ufeff"):  # the first one is the file's own
                raise DataError(f"{path}: line {number} begins with a byte order mark: files were joined; remove it")
            if (fault := unusable(line)) is not None:
                raise DataError(f"{path}: line {number} {fault}; save the file as UTF-8 without it")
        return [PromptRow(index, line.strip()) for index, (_, line) in enumerate(lines)]
    if path.suffix.lower() not in TABLES:
        raise DataError(f"{path}: unknown kind of prompt file; give one of .txt, {', '.join(TABLES)}")
    table = read_table(path)
    texts = table.prompts(find_column(table.names, column, PROMPT_COLUMNS, str(path), "the prompt column"))
    if category is None:
        named = {name.casefold(): name for name in reversed(table.names)}
        category = next((named[name] for name in CATEGORY_COLUMNS if name in named), None)
    if category is None:
        return [PromptRow(index, text) for index, text in enumerate(texts)]
    category = find_column(table.names, category, (), str(path), "the category column")
    values = table.column(category)
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float | None) or value != value:
            raise DataError(f"{table.place(row)}: {category} is {shown(str(value))}, not text; write a text there")
    labels = ["" if value is None else str(value).strip() for value in values]
    for row, label in enumerate(labels):
        if (fault := unusable(label)) is not None:
            raise DataError(f"{table.place(row)}: {category} {fault}; save the file as UTF-8 without it")
    return [PromptRow(index, text, label) for index, (text, label) in enumerate(zip(texts, labels, strict=True))]


def _other_kind(lines: list[tuple[int, str]]) -> str | None:
    """What a .txt file holds instead of prompts: JSON, by its whole text or its first line, or a table by its header.

    Else every line of it, brackets and commas with it, would be a prompt.
    """
    first = lines[0][1].strip()
    if first[0] in "[{":
        for text, kind in (("\n".join(line for _, line in lines), ".json"), (first, ".jsonl")):
            with contextlib.suppress(ValueError):
                parse_json(text)
                return f"JSON ({kind})"
    for sign, kind in ((",", ".csv"), ("\t", ".tsv")):
        names = [name.strip('" ').casefold() for name in first.split(sign)]
        if len(names) > 1 and {*names} & {*PROMPT_COLUMNS} and all(name.isidentifier() for name in names):
            return f"a table ({kind})"
    return None
