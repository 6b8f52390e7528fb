"""What a file holds, read once: its sha256 and, of torch.save's and TorchScript's zip archives, whether it is sound."""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

from rank_e.io.files import sha256_of

BLOCK = 1 << 24
"""Bytes that are read at a time."""
HEAD = struct.Struct("<26xHH")
"""What stands before a member in the archive: at its end the lengths of a name and of notes, which follow it."""


class Contents(NamedTuple):
    """sha256 of a file in hexadecimal, and what is wrong with it as a zip archive; None: nothing, or it is none."""

    sha256: str
    fault: str | None


class _Member(NamedTuple):
    """A stored member: where its bytes lie, and the CRC that the archive says they have."""

    name: str
    start: int
    end: int
    crc: int


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, sound or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its last bytes say so, and contradict each other
        return True


def contents_of(path: Path) -> Contents:
    """Read a file once, an archive against its checksums.

    torch can be told to write no checksums, and puts zeros in their place: then there is nothing to compare. The few
    members that are compressed, TorchScript's code, are read a second time.
    """
    if not is_archive(path):
        return Contents(sha256_of(path), None)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist()]
            checksums = any(member.CRC for member in archive.infolist())
            stored, damaged = _members(archive, path) if checksums else ([], set[str]())
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        return Contents(sha256_of(path), f"is a damaged archive ({error})")
    with path.open("rb") as file:
        sha256, wrong = _read(file, stored)
    first = next((name for name in names if name in damaged | wrong), None)
    return Contents(sha256, None if first is None else f"is damaged: its member {first} fails the archive's CRC")


def _members(archive: zipfile.ZipFile, path: Path) -> tuple[list[_Member], set[str]]:
    """The stored members, and the names of those that are damaged already by their heads, or compressed and damaged."""
    stored, damaged = [], set()
    with path.open("rb") as file:
        for member in archive.infolist():
            try:
                with archive.open(member) as opened:  # compares the head with the archive's directory
                    while member.compress_type != zipfile.ZIP_STORED and opened.read(BLOCK):
                        pass
            except zipfile.BadZipFile:
                damaged.add(member.filename)
                continue
            if member.compress_type == zipfile.ZIP_STORED:
                file.seek(member.header_offset)
                head = file.read(HEAD.size)
                start = member.header_offset + len(head) + sum(HEAD.unpack(head))
                stored.append(_Member(member.filename, start, start + member.file_size, member.CRC))
                damaged |= {member.filename} if member.compress_size != member.file_size else set()
    return stored, damaged


def _read(file: IO[bytes], members: list[_Member]) -> tuple[str, set[str]]:
    """sha256 of a file from its beginning, and the names of the members whose bytes fail their CRC."""
    digest, found, position = hashlib.sha256(), dict.fromkeys(members, 0), 0
    left = sorted(members, key=lambda member: member.start)
    while block := file.read(BLOCK):
        digest.update(block)
        view, end = memoryview(block), position + len(block)
        for member in left:
            if member.start >= end:
                break
            part = view[max(member.start - position, 0) : member.end - position]
            found[member] = zlib.crc32(part, found[member])
        left = [member for member in left if member.end > end]
        position = end
    return digest.hexdigest(), {member.name for member, crc in found.items() if crc != member.crc}
