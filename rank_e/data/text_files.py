"""Text of files that others wrote: lines, JSON, and what no prompt or caption may hold."""

from __future__ import annotations

import re
from pathlib import Path

from rank_e.data.errors import DataError
from rank_e.io.stand_ins import stand_in

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONFLICT = re.compile(r"^(?:<<<<<<<|>>>>>>>) ", re.MULTILINE)  # what `git merge` leaves in a file
_LINE_END = re.compile(r"\r\n|\n|\r")


def check_file(path: Path) -> None:
    """DataError unless `path` is a file with something in it, and no pointer or web page in the file's place."""
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'does not exist'}; fix the path")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; download or write it again")
    if (found := stand_in(path)) is not None:
        raise DataError(f"{path}: {found}")


def read_text(path: Path) -> str:
    """A UTF-8 file's text (a byte order mark is dropped). DataError names the line that is not UTF-8.

    UTF-16 without a byte order mark is UTF-8 too, with a NUL in nearly every character: the first line tells.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(_LINE_END.split(data[: error.start].decode("utf-8", "replace")))
        raise DataError(f"{path} line {line}: is not UTF-8; save the file as UTF-8") from None
    if "\0" in _LINE_END.split(text, maxsplit=1)[0]:
        raise DataError(f"{path}: line 1 holds NUL; save the file as UTF-8")
    if len(_CONFLICT.findall(text)) > 1:
        raise DataError(f"{path}: holds an unresolved conflict of git (<<<<<<<, >>>>>>>); choose a side")
    return text


def text_lines(text: str) -> list[tuple[int, str]]:
    """Lines that are not blank with their numbers from 1; \\n, \\r\\n and a lone \\r end a line, and nothing else."""
    return [(number, line) for number, line in enumerate(_LINE_END.split(text), 1) if line.strip()]


def unusable(text: str) -> str | None:
    """Why a text cannot be a prompt or a caption: NUL, half of a character, nothing to see; None where it can."""
    if "\0" in text:
        return "holds NUL"
    if _SURROGATE.search(text) is not None:
        return "holds half a character (a lone surrogate)"
    if text and not any(sign.isprintable() and not sign.isspace() for sign in text):
        return f"holds nothing that can be seen ({shown(text)})"
    return None


def shown(text: str, length: int = 80) -> str:
    """A text of a file as an error shows it: quoted on one line, what cannot be printed escaped, cut to `length`."""
    return repr(text) if len(text) <= length else f"{text[:length]!r}..."
