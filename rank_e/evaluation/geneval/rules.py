"""GenEval's rules as pure functions over detections: what counts as an object, and whether an image is correct.

Source: Ghosh et al., "GenEval", 2023, and the thresholds of its published evaluation (its paper names them too).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rank_e.evaluation.geneval.tasks import COLORS, COUNTING, GenEvalError, Requirement, Task

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels; y grows downward
_DIRECTION = 0.5  # share of the distance that an axis must hold: neighbouring directions overlap by 30 degrees
_STILL = 1e-3  # pixels


@dataclass(frozen=True, eq=False)
class Detection:
    """One object: GenEval's class `name`, `score` in [0, 1], `box` in pixels of the image, and `mask` bool [H, W]
    of the image's size (None from a detector without masks).
    """

    name: str
    score: float
    box: Box
    mask: NDArray[np.bool_] | None = None


# Colours of the given objects of one class: one of COLORS for each.
Classify = Callable[[Sequence[Detection], str], Sequence[str]]


@dataclass(frozen=True)
class Thresholds:
    """GenEval's settings; the defaults are the published ones.

    An object needs a score above `confidence`, in counting prompts above `counting`; a class keeps its `max_objects`
    best; of two whose overlap (IoU) reaches `max_overlap` the worse goes, and 1 (published) keeps both; `position` is
    the share of the two objects' summed sizes by which centres must differ. Raises GenEvalError outside [0, 1] or
    below one object.
    """

    confidence: float = 0.3
    counting: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position: float = 0.1

    def __post_init__(self) -> None:
        for key in ("confidence", "counting", "max_overlap", "position"):
            if not 0 <= getattr(self, key) <= 1:
                raise GenEvalError(f"geneval.{key} is {getattr(self, key)}; give a number in [0, 1]")
        if self.max_objects < 1:
            raise GenEvalError(f"geneval.max_objects is {self.max_objects}; give 1 or more")

    @property
    def floor(self) -> float:
        """The score at or below which no detection is ever used."""
        return min(self.confidence, self.counting)


PUBLISHED = Thresholds()


@dataclass(frozen=True)
class Verdict:
    """Whether an image is correct; if not, `reasons`, one for each thing that failed."""

    correct: bool
    reasons: tuple[str, ...]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union in [0, 1] of boxes whose right and bottom pixels belong to them (COCO's old +1)."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union else 0.0


def objects_of(detections: Iterable[Detection], tag: str, thresholds: Thresholds) -> dict[str, list[Detection]]:
    """The objects that count, by class, best first: above the tag's score, at most `max_objects`, then thinned where
    they overlap. A class without objects has no entry.
    """
    least = thresholds.counting if tag == COUNTING else thresholds.confidence
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > least:
            found.setdefault(detection.name, []).append(detection)
    return {name: _thinned(best[: thresholds.max_objects], thresholds.max_overlap) for name, best in found.items()}


def _thinned(best_first: list[Detection], max_overlap: float) -> list[Detection]:
    """Greedy non-maximum suppression within a class."""
    if max_overlap == 1:  # published: off, even for two identical boxes
        return best_first
    kept: list[Detection] = []
    for detection in best_first:
        if all(overlap(better.box, detection.box) < max_overlap for better in kept):
            kept.append(detection)
    return kept


def relations(a: Box, b: Box, threshold: float) -> frozenset[str]:
    """How `a` lies to `b`: some of RELATIONS, two on a diagonal, none where the centres are too close.

    The offset of the centres is shrunk on each axis by `threshold` times the two sizes there; an axis relates them
    if what is left exceeds half of the whole offset.
    """
    offset = ((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    sizes = (abs(a[2] - a[0]) + abs(b[2] - b[0]), abs(a[3] - a[1]) + abs(b[3] - b[1]))
    left = [math.copysign(max(abs(o) - threshold * s, 0), o) for o, s in zip(offset, sizes, strict=True)]
    if all(abs(v) < _STILL for v in left):
        return frozenset()
    dx, dy = (v / math.hypot(*offset) for v in left)
    held = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return frozenset(name for name, share in held.items() if share > _DIRECTION)


def check(
    task: Task, objects: Mapping[str, Sequence[Detection]], classify: Classify, thresholds: Thresholds
) -> Verdict:
    """Whether `objects` (of `objects_of`, best first) are what the prompt asks for.

    Colour and position look at the `count` best objects of a class alone, and `classify` is only called where a
    colour is asked of enough objects. A relation is measured against the objects that met the target entry; if that
    entry failed, so does this one.
    """
    reasons: list[str] = []
    met: list[Sequence[Detection] | None] = []
    for need in task.include:
        chosen = list(objects.get(need.name, ()))[: need.count]
        problem = (
            _too_few(need, chosen)
            or _wrong_color(need, chosen, classify)
            or _wrong_place(need, chosen, met, thresholds.position)
        )
        met.append(None if problem else chosen)
        if problem:
            reasons.append(problem)
    for limit in task.exclude:
        count = len(objects.get(limit.name, ()))
        if count >= limit.count:
            reasons.append(f"expected {limit.name}<{limit.count}, found {count}")
    return Verdict(not reasons, tuple(reasons))


def _too_few(need: Requirement, chosen: Sequence[Detection]) -> str:
    return "" if len(chosen) >= need.count else f"expected {need.name}>={need.count}, found {len(chosen)}"


def _wrong_color(need: Requirement, chosen: Sequence[Detection], classify: Classify) -> str:
    if need.color is None:
        return ""
    colors = list(classify(chosen, need.name))
    if len(colors) != len(chosen) or not set(colors) <= set(COLORS):
        raise GenEvalError(f"geneval: the colour classifier gave {colors} for {len(chosen)} objects; give one for each")
    if colors.count(need.color) >= need.count:
        return ""
    seen = ", ".join(f"{colors.count(c)} {c}" for c in COLORS if c in colors)
    return f"expected {need.color} {need.name}>={need.count}, found {seen}"


def _wrong_place(
    need: Requirement, chosen: Sequence[Detection], met: Sequence[Sequence[Detection] | None], threshold: float
) -> str:
    if need.relation is None or need.target is None:
        return ""
    targets = met[need.target]
    if targets is None:
        return f"no target for {need.name} to be {need.relation}"
    for item in chosen:
        for target in targets:
            found = relations(item.box, target.box, threshold)
            if need.relation not in found:
                return f"expected {need.name} {need.relation} target, found {' and '.join(sorted(found)) or 'neither'}"
    return ""
