"""Ways in which files go bad, drawn at random: bits, lengths, sectors, numbers, and other files in their places."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Damage(NamedTuple):
    """What is to be done: its kind, the place, and the place's bytes after it, or the folder that takes its place."""

    kind: str
    place: Path
    data: bytes | None = None
    given: Path | None = None


def flipped(draw: random.Random, data: bytes) -> bytes:
    """One bit is another."""
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncated(draw: random.Random, data: bytes) -> bytes:
    """The end is missing."""
    return data[: draw.randrange(len(data))]


def zeroed(draw: random.Random, data: bytes) -> bytes:
    """A sector holds nothing but zeros."""
    start = draw.randrange(0, len(data), 512)
    return data[:start] + bytes(len(data[start : start + 512])) + data[start + 512 :]


def edited(draw: random.Random, data: bytes) -> bytes:
    """One digit of a number in JSON is another."""
    place = draw.choice(_digits(data))
    digit = draw.choice([digit for digit in b"123456789" if digit != data[place]])  # a zero may not lead
    return data[:place] + bytes([digit]) + data[place + 1 :]


def _digits(data: bytes) -> list[int]:
    """Where the digits of JSON numbers stand; those in texts, such as hashes, are none."""
    plain = re.sub(rb'"(?:[^"\\]|\\.)*"', lambda text: b"x" * len(text[0]), data)
    return [match.start() for match in re.finditer(rb"\d", plain)]


WAYS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flip": flipped,
    "truncation": truncated,
    "zeros": zeroed,
    "edit": edited,
}


def damage(draw: random.Random, files: Sequence[Path], others: Callable[[Path], Sequence[Path]]) -> Damage:
    """One of the files in one way, or swapped for one of `others(file)` of other bytes; nothing is written."""
    file = draw.choice([path for path in files if path.stat().st_size])
    data = file.read_bytes()
    ways = [way for way in WAYS if way != "edit" or (file.suffix == ".json" and _digits(data))]
    given = [path for path in others(file) if path.read_bytes() != data]
    kind = draw.choice([*ways, "swap"] if given else ways)
    if kind == "swap":
        return Damage(kind, file, draw.choice(given).read_bytes())
    return Damage(kind, file, WAYS[kind](draw, data))
