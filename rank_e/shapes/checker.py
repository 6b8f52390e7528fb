"""Read an image back without anything learned: segmentation by colour, then a test of each blob's shape.

An image is right when it holds exactly the objects that its caption names: the same multiset of shapes and
colours, the same direction, and nothing else. A saturated blob that is no clean circle, square or triangle
makes it wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rank_e.errors import RankEError
from rank_e.shapes.captions import COLOURS, SHAPES, Composition, Item
from rank_e.shapes.render import PALETTE, signed_distance
from rank_e.shapes.scene import AREA, SIZE, points

# Largest minus smallest channel: backgrounds stay below 0.1, rims of objects above 0.25.
CHROMA = 0.18
# Smaller specks are ignored; between this and the least object a blob is a fault of the image.
SPECK_AREA = 8
LEAST_AREA = 60
LEAST_IOU = 0.85
# Rotations, in degrees, in which a template is tried.
TILTS = (-10.0, 0.0, 10.0)
_PAD = 3
# An object at the centre of the image is at none of its sides.
LEAST_OFFSET = 4.0


@dataclass(frozen=True)
class Seen:
    """A blob of one colour: shape ("" when it matches no template), centre and area in pixels."""

    shape: str
    colour: str
    row: float
    col: float
    area: int
    iou: float


def read(image: NDArray[np.generic]) -> list[Seen]:
    """The objects of an image, by colour and from the upper edge down.

    `image` is [3, 48, 48], float in [0, 1] or uint8; values beyond the range count as the range's ends.
    Raises RankEError for another shape or type and for values that are not finite.
    """
    pixels = _as_float(image)
    low = pixels.min(axis=0)
    chroma = pixels.max(axis=0) - low
    saturated = chroma > CHROMA
    # The colour without its grey part is the hue; the nearest direction of the palette names it.
    nearest = np.tensordot(_HUES, pixels - low, axes=1).argmax(axis=0)
    seen: list[Seen] = []
    for index, colour in enumerate(COLOURS):
        mask = saturated & (nearest == index)
        if not mask.any():
            continue
        labels, _ = ndimage.label(mask)
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            blob = labels[window] == label
            if (area := int(blob.sum())) >= SPECK_AREA:
                seen.append(_recognise(blob, area, colour, window[0].start, window[1].start))
    return seen


def check(image: NDArray[np.generic], composition: Composition) -> bool:
    """True when the image shows exactly the composition; arguments and errors as `read`."""
    seen = read(image)
    if len(seen) != composition.count or any(not blob.shape for blob in seen):
        return False
    wanted = [item for item in composition.items for _ in range(item.count)]
    return any(_fits(order, wanted, composition.direction) for order in permutations(seen))


def _fits(blobs: Sequence[Seen], wanted: Sequence[Item], direction: str) -> bool:
    """Whether the blobs, in this order, are the wanted objects and stand in the wanted direction."""
    for blob, item in zip(blobs, wanted, strict=True):
        if blob.shape != item.shape or item.colour not in ("", blob.colour):
            return False
    if not direction:
        return True
    row, col = (blobs[1].row, blobs[1].col) if len(blobs) > 1 else (SIZE / 2, SIZE / 2)
    offset_row, offset_col = blobs[0].row - row, blobs[0].col - col
    far_enough = max(abs(offset_row), abs(offset_col)) >= LEAST_OFFSET
    return bool(far_enough and points(direction, np.array(offset_row), np.array(offset_col), lead=1.0))


def _recognise(blob: NDArray[np.bool_], area: int, colour: str, top: int, left: int) -> Seen:
    """Compare a blob with each shape of its own area and centroid; the best overlap names it."""
    blob = np.pad(blob, _PAD)  # templates may reach beyond the blob
    rows = np.arange(blob.shape[0], dtype=np.float64)[:, None]
    cols = np.arange(blob.shape[1], dtype=np.float64)[None, :]
    row, col = float((blob * rows).sum() / area), float((blob * cols).sum() / area)
    down, right = rows - row, cols - col
    best, best_iou = "", LEAST_IOU
    for shape, cos, sin in _TEMPLATES if area >= LEAST_AREA else ():
        inradius = float(np.sqrt(area / AREA[shape]))
        tilted_rows, tilted_cols = down * cos - right * sin, down * sin + right * cos
        template = signed_distance(shape, tilted_rows, tilted_cols, inradius) <= 0
        overlap = int((template & blob).sum())
        iou = overlap / (area + int(template.sum()) - overlap)
        if iou > best_iou:
            best, best_iou = shape, iou
    return Seen(best, colour, row + top - _PAD + 0.5, col + left - _PAD + 0.5, area, best_iou if best else 0.0)


def _as_float(image: NDArray[np.generic]) -> NDArray[np.float32]:
    if image.shape != (3, SIZE, SIZE):
        raise RankEError(f"image of shape {list(image.shape)}: the checker reads [3, {SIZE}, {SIZE}]")
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255)
    if not np.issubdtype(image.dtype, np.floating):
        raise RankEError(f"image of type {image.dtype}: the checker reads float in [0, 1] or uint8")
    pixels: NDArray[np.float32] = image.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise RankEError("image with values that are not finite: look for a diverged decoder")
    return pixels.clip(0, 1)


def _hues() -> NDArray[np.floating]:
    """Unit vectors [4, 3] of the palette without its grey part."""
    colours = np.array([PALETTE[colour] for colour in COLOURS], dtype=np.float32)
    colours -= colours.min(axis=1, keepdims=True)
    return colours / np.linalg.norm(colours, axis=1, keepdims=True)


_HUES = _hues()
# Shape, cosine and sine of each template; a circle looks the same at every tilt.
_TEMPLATES = tuple(
    (shape, float(np.cos(np.deg2rad(tilt))), float(np.sin(np.deg2rad(tilt))))
    for shape in SHAPES
    for tilt in (TILTS if shape != "circle" else (0.0,))
)
