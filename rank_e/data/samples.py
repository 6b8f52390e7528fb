"""Where the bytes and captions of image samples lie: a folder with a table, COCO 2014; tars are in `webdataset`.

Each knows its length and answers any index at once. `caption` and `image` raise BadSampleError for a sample that
cannot be used; what is wrong with the files as a whole is a DataError when they are opened.
"""

from __future__ import annotations

import operator
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.tables import PROMPT_COLUMNS, find_column, read_table
from rank_e.data.text_files import check_file, read_text, unusable
from rank_e.io.json_text import parse_json

IMAGE_COLUMNS = ("file_name", "filename", "image", "image_path", "file", "path")
CAPTION_TABLES = ("metadata", "captions")


class Samples(Protocol):
    """Images with captions, indexed from 0: all that `FileDataset` needs of a layout, or of a user's own files."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a report calls the sample: a file, or a tar and its member."""
        ...

    def caption(self, index: int) -> str:
        """The caption, outer white space removed, not empty."""
        ...

    def image(self, index: int) -> bytes:
        """The image file's bytes."""
        ...


class FileSamples:
    """Image files of `folder` with captions in memory: (name, caption) pairs, both unchecked until they are read."""

    def __init__(self, folder: Path, names: list[str], captions: list[Any]) -> None:
        self.folder = folder
        self._names = names
        self._captions = captions

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return printable(str(self.folder / self._names[index]))

    def caption(self, index: int) -> str:
        return clean_caption(self._captions[index], self, index)

    def image(self, index: int) -> bytes:
        file = self.folder / self._names[index]
        # Compared as text: what lies in the folder may be a link.
        if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(self.folder)):
            raise BadSampleError(self.name(index), f"lies outside {self.folder}, where nothing watches it")
        try:
            if not stat.S_ISREG(file.stat().st_mode):  # reading a FIFO or a device need never end
                raise BadSampleError(self.name(index), "is not a file")
            return file.read_bytes()
        except OSError as error:
            raise BadSampleError(self.name(index), f"cannot be read ({error.strerror})") from None
        except ValueError as error:  # NUL, or half of a character
            raise BadSampleError(
                self.name(index), f"has a name that no file can have ({printable(str(error))})"
            ) from None


def open_folder(
    path: str | Path,
    captions: str | Path | None = None,
    column: str | None = None,
    image_column: str | None = None,
    where: str = "data",
) -> FileSamples:
    """Images under `path`, listed with their captions by a table (tables.read_table).

    `captions`: the table; without it the folder's only metadata.* or captions.* table. The image column is
    `image_column` or the only one called as one of IMAGE_COLUMNS, relative to `path`; the caption column is
    `column` or the only one called as one of PROMPT_COLUMNS.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; correct {where}")
    if captions is None:
        kinds = ("csv", "tsv", "json", "jsonl", "parquet")
        found = [file for stem in CAPTION_TABLES for kind in kinds if (file := folder / f"{stem}.{kind}").is_file()]
        if len(found) != 1:
            held = " and ".join(file.name for file in found) or "no table called metadata.* or captions.*"
            raise DataError(f"{folder}: holds {held}; name the table of captions by {where}.captions")
        captions = found[0]
    table = read_table(captions)
    image = find_column(table.names, image_column, IMAGE_COLUMNS, str(captions), f"{where}.image_column")
    text = find_column(table.names, column, PROMPT_COLUMNS, str(captions), f"{where}.column")
    return FileSamples(folder, table.texts(image), table.column(text))


def open_coco(path: str | Path, split: str = "val2014", every_caption: bool = False) -> FileSamples:
    """COCO 2014: annotations/captions_SPLIT.json and SPLIT/, by image id and annotation id.

    One sample an image with its first caption (lowest annotation id), or one a caption with `every_caption`.
    """
    file = Path(path) / "annotations" / f"captions_{split}.json"
    check_file(file)
    try:
        content = parse_json(read_text(file))
        images = [(_number(image["id"]), str(image["file_name"])) for image in content["images"]]
        notes = [(_number(note["image_id"]), _number(note["id"]), note["caption"]) for note in content["annotations"]]
    except (ValueError, TypeError, KeyError) as error:
        fault = f"{type(error).__name__}: {str(error)[:160]}"
        raise DataError(f"{file}: is no COCO captions file ({fault}); download the 2014 annotations again") from None
    for kind, ids in (("image", [row[0] for row in images]), ("annotation", [row[1] for row in notes])):
        if (twice := next((number for number, count in Counter(ids).items() if count > 1), None)) is not None:
            raise DataError(f"{file}: {kind} id {twice} stands there twice; download the 2014 annotations again")
    names = dict(images)
    notes.sort(key=lambda note: note[:2])
    captions: dict[int, list[Any]] = {image: [] for image in sorted(names)}
    for image, _, caption in notes:
        if image not in captions:
            raise DataError(f"{file}: annotation of image {image}, which is not listed; download the file again")
        captions[image].append(caption)
    # An image without a caption stays, as a sample that is counted as bad when it is read.
    last = None if every_caption else 1
    rows = [(image, text) for image, texts in captions.items() for text in (texts or [""])[:last]]
    if not rows:
        raise DataError(f"{file}: lists no images; download the 2014 annotations again")
    folder = Path(path) / split
    if not folder.is_dir():
        raise DataError(f"{folder}: does not exist; unpack COCO's images there")
    return FileSamples(folder, [names[image] for image, _ in rows], [text for _, text in rows])


def clean_caption(value: Any, samples: Samples, index: int) -> str:
    """A caption as it was found, outer white space removed. BadSampleError if it is no text, or none to be used."""
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError(samples.name(index), "its caption is missing, empty or no text")
    if (fault := unusable(value)) is not None:
        raise BadSampleError(samples.name(index), f"its caption {fault}")
    return value.strip()


def printable(name: str) -> str:
    """A file's name on one line: what cannot be printed, or is no UTF-8, is escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


def _number(value: Any) -> int:
    """An id: a whole number, or one in a text; TypeError or ValueError for anything else."""
    if isinstance(value, bool):
        raise TypeError("an id is true or false")
    return int(value) if isinstance(value, str) else operator.index(value)
