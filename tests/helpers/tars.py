"""Webdataset tars."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = ["a red cube, left of a cone", "two dogs", "naïve café", "a cat", "three birds", "a boat"]


def image(number: int, kind: str = "png", size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def members(numbers: range) -> list[tuple[str, bytes]]:
    pairs = [[(f"{n:05d}.png", image(n)), (f"{n:05d}.txt", CAPTIONS[n].encode())] for n in numbers]
    return [member for pair in pairs for member in pair]
