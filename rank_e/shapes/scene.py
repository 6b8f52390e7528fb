"""Scenes: where the objects of a composition stand, how large they are and what lies behind them.

A scene is data; `rank_e.shapes.render` turns it into an image. All lengths are pixels of a 48 x 48 image;
rows count downwards from the upper edge, columns from the left edge; pixel (0, 0) covers [0, 1) x [0, 1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rank_e.errors import RankEError
from rank_e.shapes.captions import COLOURS, DIRECTIONS, Composition

SIZE = 48
# Centres lie on a lattice: the tokenizer sees few phases of an edge within its 8-pixel cells.
LATTICE = 2
MARGIN = 1.0
# Least gap between the circumscribed circles of two objects: after anti-aliasing two objects never touch.
GAP = 2.5
# Inradii (distance from the centre to the nearest edge) of shapes of a similar area, by level. Whole pixels
# on a whole-pixel lattice keep straight edges crisp, so that no edge pixel is half an object.
INRADII: dict[str, tuple[int, ...]] = {
    "circle": (6, 7, 8, 9, 10),
    "square": (5, 6, 7, 8, 9),
    "triangle": (4, 5, 6, 6, 7),
}
LEVELS: dict[int, tuple[int, ...]] = {1: (1, 2, 3, 4), 2: (1, 2), 3: (0, 1)}  # by the number of objects
# Of a shape of inradius 1: radius of the circumscribed circle, and area.
CIRCUMRADIUS: dict[str, float] = {"circle": 1.0, "square": 2**0.5, "triangle": 2.0}
AREA: dict[str, float] = {"circle": np.pi, "square": 4.0, "triangle": 3 * 3**0.5}
# A direction needs this lead along its axis over the other axis, so that a small rotation keeps it true, ...
LEAD = 1.5
# ... and an object "at the left" stands this far from the image's middle.
PLACE_OFFSET = 8.0
BACKGROUNDS: tuple[str, ...] = ("gradient", "rows", "columns", "diagonal")
TINTS = 4

_CANDIDATES = 128
_BATCHES = 200


@dataclass(frozen=True)
class Object:
    """One upright shape: its centroid and its inradius in pixels."""

    shape: str
    colour: str
    row: float
    col: float
    inradius: int


@dataclass(frozen=True)
class Background:
    """`kind` of BACKGROUNDS, `tint` in [0, TINTS), `flip` reverses the direction of the light."""

    kind: str
    tint: int
    flip: bool


@dataclass(frozen=True)
class Scene:
    """An image as data: objects, what lies behind them, and the caption that it was made for."""

    objects: tuple[Object, ...]
    background: Background
    category: str
    caption: str
    id: int


def points(direction: str, rows: NDArray[np.float64], cols: NDArray[np.float64], lead: float) -> NDArray[np.bool_]:
    """Whether the offsets (rows, cols) point in `direction`, `lead` times as far as along the other axis.

    With lead 1 exactly one of the four directions holds for an offset (none on the diagonals).
    """
    down, right = DIRECTIONS[direction]
    along = rows * down + cols * right
    across = np.abs(rows * right) + np.abs(cols * down)
    return (along > 0) & (along > lead * across)


def make_scene(composition: Composition, caption: str, scene_id: int, rng: np.random.Generator) -> Scene:
    """Draw a scene that shows exactly what the composition asks for.

    Objects of one item share their size; free colours are drawn without repeating a colour of the image.
    Raises RankEError when no arrangement fits (it would mean that LEVELS outgrew the image).
    """
    shapes, colours = _draw_looks(composition, rng)
    rows, cols, inradii = _place(composition, shapes, rng)
    objects = tuple(
        Object(shape, colour, float(row), float(col), int(inradius))
        for shape, colour, row, col, inradius in zip(shapes, colours, rows, cols, inradii, strict=True)
    )
    kind, tint, flip = rng.integers((len(BACKGROUNDS), TINTS, 2))
    background = Background(BACKGROUNDS[kind], int(tint), bool(flip))
    return Scene(objects, background, composition.category, caption, scene_id)


def _draw_looks(composition: Composition, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Shape and colour of every object."""
    free = [colour for colour in COLOURS if colour not in {item.colour for item in composition.items}]
    free = [free[i] for i in rng.permutation(len(free))]
    shapes: list[str] = []
    colours: list[str] = []
    for item in composition.items:
        shapes += [item.shape] * item.count
        colours += [item.colour or free.pop()] * item.count
    return shapes, colours


def _place(
    composition: Composition, shapes: list[str], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Rows, columns and inradii of the objects: the first of many random arrangements that is valid."""
    n = len(shapes)
    circumradius = np.array([CIRCUMRADIUS[shape] for shape in shapes])
    choices = np.array([INRADII[shape] for shape in shapes])[:, LEVELS[n]]
    for _ in range(_BATCHES):
        centres = rng.integers(1, SIZE // LATTICE, size=(2, _CANDIDATES, n)) * float(LATTICE)
        rows, cols = centres[0], centres[1]
        levels = rng.integers(choices.shape[1], size=(_CANDIDATES, len(composition.items)))
        inradii = choices[np.arange(n), np.broadcast_to(levels, (_CANDIDATES, n))]
        reach = inradii * circumradius
        inside = np.minimum(np.minimum(rows, cols), SIZE - np.maximum(rows, cols)) >= reach + MARGIN
        valid = inside.all(axis=1)
        for i in range(n):
            for j in range(i):
                distance = np.hypot(rows[:, i] - rows[:, j], cols[:, i] - cols[:, j])
                valid &= distance >= reach[:, i] + reach[:, j] + GAP
        if composition.direction:
            origin_row, origin_col = (rows[:, 1], cols[:, 1]) if n == 2 else (SIZE / 2, SIZE / 2)
            offset_row, offset_col = rows[:, 0] - origin_row, cols[:, 0] - origin_col
            valid &= points(composition.direction, offset_row, offset_col, LEAD)
            valid &= np.maximum(np.abs(offset_row), np.abs(offset_col)) >= PLACE_OFFSET
        found = np.flatnonzero(valid)
        if len(found):
            return rows[found[0]], cols[found[0]], inradii[found[0]]
    raise RankEError(f"{shapes} do not fit into {SIZE} x {SIZE} pixels: lower rank_e.shapes.scene.LEVELS")
