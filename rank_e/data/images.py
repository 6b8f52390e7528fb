"""From an image file's bytes to a square uint8 tensor."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 178_956_970
"""Pixels (width x height) that an image may have: Pillow opens none with more, 0.5 GB in RGB."""


class UndecodableError(Exception):
    """Bytes that are no whole 8-bit image of a known format; the message says why."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB image in `data` (JPEG, PNG or WebP), upright by its EXIF tag, transparency over white.

    An animation gives its first frame. Raises UndecodableError for anything else: broken or truncated bytes,
    other formats, more than 8 bits a channel that cannot be shown as they are, more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:  # before anything is unpacked
                raise UndecodableError(f"has {image.width} x {image.height} pixels, more than {max_pixels}")
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except (MemoryError, UndecodableError):
        raise
    except Exception as error:  # decoders of damaged files raise nearly every kind of exception
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # its text names a buffer's address
            message = "no JPEG, PNG or WebP image"
        raise UndecodableError(f"cannot be decoded ({message})") from None


def square(image: Image.Image, size: int) -> Tensor:
    """uint8 [3, size, size]: the centre square of the shorter side, resized by antialiased bicubic.

    The square starts at a whole pixel, so an image whose shorter side is `size` is only cropped.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    # Not resize(box=...): its filter would reach beyond the square.
    resized = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise UndecodableError(f"has mode {image.mode}, not 8 bits a channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
