"""Where the bytes and captions of image samples lie: webdataset tars, a folder with a table, COCO 2014.

Each knows its length and answers any index at once. `caption` and `image` raise BadSampleError for a sample that
cannot be used; what is wrong with the files as a whole is a DataError when they are opened.
"""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from pathlib import Path
from typing import Any, Protocol

from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.tables import PROMPT_COLUMNS, check_file, find_column, read_table, read_text

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
IMAGE_COLUMNS = ("file_name", "filename", "image", "image_path", "file", "path")
CAPTION_TABLES = ("metadata", "captions")
_SAMPLE_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")  # webdataset's: the key ends at the name's first dot
_META = re.compile(r"__[^/]*__(?:$|/)")  # and these members are about the tar


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


class WebdatasetSamples:
    """Tars of samples: members in sequence whose names agree up to the first dot (webdataset's rule).

    The image is the member jpg, jpeg, png or webp, in this preference. The caption is the member txt; without
    one, or with `column`, the text under that key of the member json. Only offsets are kept (about 50 bytes a
    sample) and files are read where they lie in the tar.
    """

    def __init__(self, tars: list[Path], column: str | None = None, where: str = "data") -> None:
        """`where` names the dataset's parameters in errors."""
        self.tars = tars
        self.column = column
        self.where = where
        self._tar = array("l")
        self._header = array("q")  # of the sample's first member: its name is read when a report wants it
        self._spans = {kind: (array("q"), array("q")) for kind in ("image", "txt", "json")}
        for number, path in enumerate(tars):
            self._index(number, path)
        if not self._tar:
            raise DataError(f"{', '.join(map(str, tars[:3]))}: no samples in the tars; give tars of images and texts")

    def _index(self, number: int, path: Path) -> None:
        check_file(path)
        key, members, header = None, dict[str, tuple[int, int]](), 0
        try:
            with tarfile.open(path, "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it remembers every header
                    match = _SAMPLE_NAME.fullmatch(member.name)
                    if not member.isreg() or match is None or _META.match(member.name):
                        continue
                    if match[1] != key:
                        self._add(number, header, members)
                        key, members, header = match[1], {}, member.offset
                    suffix = match[2].lower()
                    if suffix in members or member.issparse():
                        fault = "stands there twice" if suffix in members else "is stored sparsely"
                        raise DataError(f"{path}: {member.name} {fault}; write the tar again")
                    members[suffix] = (member.offset_data, member.size)
                _check_end(path, tar.offset)
        except (tarfile.TarError, OSError) as error:
            fix = "give a whole uncompressed .tar (download it again, or unpack its compression)"
            raise DataError(f"{path}: cannot be read as a tar ({error}); {fix}") from None
        self._add(number, header, members)

    def _add(self, number: int, header: int, members: dict[str, tuple[int, int]]) -> None:
        if not members:
            return
        image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
        self._tar.append(number)
        self._header.append(header)
        for kind, span in (("image", image), ("txt", members.get("txt")), ("json", members.get("json"))):
            offset, size = span or (-1, 0)
            self._spans[kind][0].append(offset)
            self._spans[kind][1].append(size)

    def __len__(self) -> int:
        return len(self._tar)

    def name(self, index: int) -> str:
        path = self.tars[self._tar[index]]
        with path.open("rb") as file:
            file.seek(self._header[index])
            with tarfile.open(fileobj=file, mode="r:") as tar:
                member = tar.next()
        match = _SAMPLE_NAME.fullmatch(member.name) if member is not None else None
        return f"{path}:{match[1] if match is not None else self._header[index]}"

    def _read(self, kind: str, index: int) -> bytes | None:
        """A member's bytes; None where the sample has no such member."""
        offset, size = (values[index] for values in self._spans[kind])
        if offset < 0:
            return None
        with self.tars[self._tar[index]].open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise BadSampleError(self.name(index), f"ends after {len(data)} of {size} bytes")
        return data

    def caption(self, index: int) -> str:
        text = self._read("txt", index) if self.column is None else None
        if text is not None:
            return _clean(_utf8(text, self, index), self, index)
        data = self._read("json", index)
        if data is None:
            raise BadSampleError(self.name(index), "has no txt and no json" if self.column is None else "has no json")
        try:
            value = json.loads(_utf8(data, self, index))
        except (ValueError, RecursionError) as error:
            raise BadSampleError(self.name(index), f"its json cannot be read ({error})") from None
        if isinstance(value, dict):
            try:
                value = value[find_column(list(value), self.column, PROMPT_COLUMNS, "json", f"{self.where}.column")]
            except DataError as error:
                raise BadSampleError(self.name(index), str(error)) from None
        return _clean(value, self, index)

    def image(self, index: int) -> bytes:
        data = self._read("image", index)
        if data is None:
            raise BadSampleError(self.name(index), f"has no image ({', '.join(IMAGE_SUFFIXES)})")
        return data


class FileSamples:
    """Image files with captions in memory: (path, caption) pairs, both unchecked until they are read."""

    def __init__(self, files: list[Path], captions: list[Any]) -> None:
        self.files = files
        self._captions = captions

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.files[index])

    def caption(self, index: int) -> str:
        return _clean(self._captions[index], self, index)

    def image(self, index: int) -> bytes:
        try:
            return self.files[index].read_bytes()
        except OSError as error:
            raise BadSampleError(self.name(index), f"cannot be read ({error.strerror})") from None


def open_webdataset(path: str | list[str], column: str | None = None, where: str = "data") -> WebdatasetSamples:
    """Tars from a folder (its *.tar), a file, a glob pattern, or a list of these; each sorted by name."""
    tars: list[Path] = []
    for item in [path] if isinstance(path, str) else path:
        place = Path(item)
        if place.is_dir():
            found = sorted(place.glob("*.tar"))
        elif not place.exists() and any(sign in item for sign in "*?["):
            anchor = Path(place.anchor)
            found = sorted(anchor.glob(str(place.relative_to(anchor))))
        else:
            found = [place]
        if not found:
            raise DataError(f"{item}: no tar there; put tars there, or correct {where}")
        tars += found
    return WebdatasetSamples(tars, column, where)


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
    return FileSamples([folder / name for name in table.texts(image)], table.column(text))


def open_coco(path: str | Path, split: str = "val2014", every_caption: bool = False) -> FileSamples:
    """COCO 2014: annotations/captions_SPLIT.json and SPLIT/, by image id and annotation id.

    One sample an image with its first caption (lowest annotation id), or one a caption with `every_caption`.
    """
    file = Path(path) / "annotations" / f"captions_{split}.json"
    check_file(file)
    try:
        content = json.loads(read_text(file))
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        notes = sorted((int(note["image_id"]), int(note["id"]), note["caption"]) for note in content["annotations"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: is no COCO captions file ({error!r}); download the 2014 annotations again") from None
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
    return FileSamples([folder / names[image] for image, _ in rows], [text for _, text in rows])


def _check_end(path: Path, offset: int) -> None:
    """DataError unless only zeros, at least a block of them, follow `offset`: where the tar's headers ended.

    tarfile takes a damaged header, or the end of the file, for the end of the archive.
    """
    with path.open("rb") as file:
        file.seek(offset)
        length = 0
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise DataError(f"{path}: damaged at byte {offset}, or several tars in one; download or split it again")
            length += len(block)
    if length < tarfile.BLOCKSIZE:
        raise DataError(f"{path}: ends without a tar's end mark, so it is truncated; download it again")


def _utf8(data: bytes, samples: Samples, index: int) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSampleError(samples.name(index), "its caption is not UTF-8") from None


def _clean(value: Any, samples: Samples, index: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError(samples.name(index), "its caption is missing, empty or no text")
    return value.strip()
