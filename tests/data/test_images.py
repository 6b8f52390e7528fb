"""Images: decoding, and the centre square against an independent resizing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rank_e.data.images import UndecodableError, decode_image, square


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def torch_resize(pixels: np.ndarray, size: int) -> Tensor:
    """An independent antialiased bicubic resize of float [H, W, 3] (torch's, Keys' a = -0.5 as in Pillow)."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(planes, (size, size), mode="bicubic", antialias=True)[0].clamp(0, 255)


@pytest.mark.parametrize(("height", "width", "size"), [(90, 61, 24), (40, 75, 33), (33, 33, 48)])
def test_square_is_the_centre_crop_resized_with_antialiasing(height: int, width: int, size: int) -> None:
    pixels = 64 + noise(1, height, width, 3) // 2  # Pillow clips overshoot between its two directions
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    expected = torch_resize(pixels[top : top + side, left : left + side], size)
    result = square(Image.fromarray(pixels), size)
    assert result.shape == (3, size, size) and result.dtype == torch.uint8
    assert (result.float() - expected).abs().max() <= 1.3  # Pillow rounds after each direction


def test_an_image_of_the_right_size_is_only_cropped() -> None:
    pixels = noise(2, 16, 21, 3)
    assert square(Image.fromarray(pixels), 16).permute(1, 2, 0).numpy().tolist() == pixels[:, 2:18].tolist()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, mode) for kind in ("png", "jpeg", "webp") for mode in ("RGB", "L")), ("png", "P"), ("jpeg", "CMYK")],
)
def test_formats_and_colour_modes_become_rgb(kind: str, mode: str) -> None:
    image = Image.fromarray(noise(3, 20, 30, 3)).convert(mode)
    data = encoded(image, kind)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(stored.convert("RGB"))
    decoded = decode_image(data)
    assert decoded.mode == "RGB" and np.array_equal(np.asarray(decoded), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_by_their_exif_tag(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(4, 6, 10, 3)), "png", exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(np.asarray(decode_image(data)), expected)


def test_transparency_lies_over_white() -> None:
    pixels = noise(5, 8, 8, 4)
    alpha = pixels[..., 3:].astype(float) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(decode_image(encoded(Image.fromarray(pixels)))) - expected).max() <= 1
    palette = Image.fromarray(noise(6, 8, 8) % 4, "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    decoded = np.asarray(decode_image(encoded(palette, transparency=2)))
    assert (decoded[np.asarray(palette) == 2] == 255).all() and (
        decoded[np.asarray(palette) == 1] == [40, 50, 60]
    ).all()


def test_what_is_no_whole_image_is_refused() -> None:
    image = Image.fromarray(noise(7, 64, 64, 3))
    cases = {kind: encoded(image, kind) for kind in ("png", "jpeg", "webp")}
    for data in cases.values():
        for length in (0, 3, 20, len(data) // 2):
            with pytest.raises(UndecodableError, match="cannot be decoded") as caught:
                decode_image(data[:length])
            assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    for data in (encoded(image, "gif"), encoded(image, "bmp"), b"<html>not found</html>"):
        with pytest.raises(UndecodableError, match="no JPEG, PNG or WebP image"):
            decode_image(data)
    with pytest.raises(UndecodableError, match="not 8 bits a channel"):
        decode_image(encoded(Image.fromarray(noise(8, 4, 4).astype(np.uint16) * 200)))


def test_damaged_bytes_never_raise_anything_else() -> None:
    image = Image.fromarray(noise(9, 24, 24, 3))
    rng = np.random.default_rng(10)
    for kind in ("png", "jpeg", "webp"):
        whole = np.frombuffer(encoded(image, kind), np.uint8)
        for _ in range(150):
            data = whole.copy()
            data[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            try:
                assert decode_image(data.tobytes()).mode == "RGB"
            except UndecodableError as error:
                assert "\n" not in str(error)
