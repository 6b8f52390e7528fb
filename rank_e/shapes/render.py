"""Draw a scene: lit, outlined shapes on a quiet background, anti-aliased by their signed distance.

The image is a function of the scene alone (no noise), so equal scenes give equal bytes.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from rank_e.shapes.scene import AREA, CIRCUMRADIUS, SIZE, Background, Scene

# sRGB in [0, 1]: far apart in hue, all of them clearly more saturated than any background.
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.16, 0.17),
    "green": (0.12, 0.68, 0.30),
    "blue": (0.15, 0.36, 0.88),
    "yellow": (0.97, 0.79, 0.10),
}
# Warm grey, cool grey, sand and slate.
_TINTS = np.array([(0.84, 0.82, 0.80), (0.78, 0.81, 0.85), (0.87, 0.85, 0.79), (0.62, 0.65, 0.69)], dtype=np.float32)
_STRIPE_PERIOD = 8.0
_STRIPE_DEPTH = 0.05
_LIGHT_DEPTH = 0.07
_RIM_WIDTH = 1.3
_RIM_SHADE = 0.58


def signed_distance(
    shape: str, rows: NDArray[np.floating], cols: NDArray[np.floating], inradius: float
) -> NDArray[np.floating]:
    """Distance in pixels from the outline of an upright shape centred at the origin; negative inside.

    Square and triangle use the largest distance from their sides (exact inside, too small beyond corners).
    """
    if shape == "circle":
        return np.hypot(rows, cols) - inradius
    if shape == "square":
        return np.maximum(np.abs(rows), np.abs(cols)) - inradius
    # An equilateral triangle, apex upwards: the base, and two slopes with normals 30 degrees upwards.
    return np.maximum(rows, np.abs(cols) * (3**0.5 / 2) - rows / 2) - inradius


def render(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The image of a scene, uint8 [size, size, 3]; `size` scales the 48-pixel world."""
    scale = size / SIZE
    axis = (np.arange(size, dtype=np.float32) + 0.5) / scale
    image = _background(scene.background, size).copy()
    for item in scene.objects:
        reach = CIRCUMRADIUS[item.shape] * item.inradius + 1
        top, bottom = max(int((item.row - reach) * scale), 0), int((item.row + reach) * scale) + 1
        left, right = max(int((item.col - reach) * scale), 0), int((item.col + reach) * scale) + 1
        rows = axis[top:bottom, None] - np.float32(item.row)
        cols = axis[None, left:right] - np.float32(item.col)
        distance = signed_distance(item.shape, rows, cols, item.inradius) * np.float32(scale)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        rim = np.clip(distance + np.float32(_RIM_WIDTH * scale) + 0.5, 0, 1)
        extent = item.inradius * (AREA[item.shape] / np.pi) ** 0.5
        # Light from the upper left; the rim keeps the hue, only darker.
        light = 1.06 - (rows + cols) * np.float32(0.15 / extent)
        shade = (light * (1 - (1 - _RIM_SHADE) * rim))[..., None]
        colour = np.asarray(PALETTE[item.colour], dtype=np.float32) * shade
        window = image[top:bottom, left:right]
        window += (colour - window) * cover
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


@cache
def _background(background: Background, size: int) -> NDArray[np.float32]:
    """Float image [size, size, 3] of a background; there are only 32, so each is drawn once."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * SIZE / size
    rows, cols = np.meshgrid(axis, axis, indexing="ij")
    along = {"gradient": None, "rows": rows, "columns": cols, "diagonal": rows + cols}[background.kind]
    light = rows / SIZE - 0.5
    level = 1 + 2 * _LIGHT_DEPTH * (light if background.flip else -light)
    if along is not None:
        level = level + _STRIPE_DEPTH * np.sin(2 * np.pi * along / _STRIPE_PERIOD)
    image: NDArray[np.float32] = (level[..., None] * _TINTS[background.tint]).astype(np.float32)
    return image
