"""Samples in webdataset's tars: indexed once by their headers, read where they lie."""

from __future__ import annotations

import re
import tarfile
from array import array
from pathlib import Path

from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.samples import Samples, clean_caption, printable
from rank_e.data.tables import PROMPT_COLUMNS, find_column
from rank_e.data.text_files import check_file
from rank_e.io.json_text import parse_json

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
KINDS = (*IMAGE_SUFFIXES, "txt", "json")
_SAMPLE_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")  # webdataset's: the key ends at the name's first dot
_META = re.compile(r"__[^/]*__(?:$|/)")  # and these members are about the tar


class WebdatasetSamples:
    """Tars of samples: members in sequence whose names agree up to the first dot (webdataset's rule).

    The image is the member jpg, jpeg, png or webp, in this preference. The caption is the member txt; without
    one, or with `column`, the text under that key of the member json. Only offsets are kept (about 50 bytes a
    sample) and files are read where they lie in the tar. DataError where the rule would take samples apart or put
    several into one: members that are not side by side, images whose names hold more dots.
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
        keys: set[str] = set()
        try:
            with tarfile.open(path, "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it remembers every header
                    match = _SAMPLE_NAME.fullmatch(member.name)
                    if match is None or _META.match(member.name):
                        continue
                    if (member.issym() or member.islnk()) and match[2].lower() in KINDS:
                        fault = f"is a link to {printable(member.linkname)}"
                        raise DataError(
                            f"{path}: {printable(member.name)} {fault}; write the tar again with files alone"
                        )
                    if not member.isreg():
                        continue
                    if match[1] != key:
                        self._add(number, header, members)
                        key, members, header = match[1], {}, member.offset
                        if key in keys:
                            fix = "write the tar again in the order of its names"
                            raise DataError(f"{path}: members of {printable(key)} are not side by side; {fix}")
                        keys.add(key)
                    suffix = match[2].lower()
                    if suffix in members or member.issparse():
                        fault = "stands there twice" if suffix in members else "is stored sparsely"
                        raise DataError(f"{path}: {printable(member.name)} {fault}; write the tar again")
                    members[suffix] = (member.offset_data, member.size)
                _check_end(path, tar.offset)
        except DataError:
            raise
        except (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError) as error:  # of damaged headers too
            fix = "give a whole uncompressed .tar (download it again, or unpack its compression)"
            words = printable(str(error)[:160]) or "a header claims more than memory holds"
            raise DataError(f"{path}: cannot be read as a tar ({words}); {fix}") from None
        self._add(number, header, members)

    def _add(self, number: int, header: int, members: dict[str, tuple[int, int]]) -> None:
        if not members:
            return
        image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
        dotted = next((suffix for suffix in members if suffix.rpartition(".")[2] in IMAGE_SUFFIXES), None)
        if image is None and dotted is not None:
            name = f"{self.tars[number]}: an image's name ends in .{printable(dotted)}, and a sample's at its first dot"
            raise DataError(f"{name}; write the tar again with names without other dots")
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
        return f"{path}:{printable(match[1]) if match is not None else self._header[index]}"

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
            return clean_caption(_utf8(text, self, index), self, index)
        data = self._read("json", index)
        if data is None:
            raise BadSampleError(self.name(index), "has no txt and no json" if self.column is None else "has no json")
        try:
            value = parse_json(_utf8(data, self, index))
        except ValueError as error:
            raise BadSampleError(self.name(index), f"its json cannot be read ({error})") from None
        if isinstance(value, dict):
            try:
                value = value[find_column(list(value), self.column, PROMPT_COLUMNS, "json", f"{self.where}.column")]
            except DataError as error:
                raise BadSampleError(self.name(index), str(error)) from None
        return clean_caption(value, self, index)

    def image(self, index: int) -> bytes:
        data = self._read("image", index)
        if data is None:
            raise BadSampleError(self.name(index), f"has no image ({', '.join(IMAGE_SUFFIXES)})")
        return data


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
