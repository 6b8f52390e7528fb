"""GenEval's prompts: what each asks for, read from the published `geneval_metadata.jsonl` (Ghosh et al., 2023)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rank_e.evaluation.base import EvaluationError
from rank_e.io.json_text import parse_json

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
COUNTING = "counting"  # the tag whose detections need more confidence

# COCO's 80 classes in the detectors' order; GenEval renames mouse, remote and keyboard for its prompts.
CLASS_NAMES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
    bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
    snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,
    fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,
    potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,oven,
    toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n    ", "").split(
        ","
    )
)


class GenEvalError(EvaluationError):
    """GenEval cannot go on: a bad prompt file, an unusable detector or classifier, or results that do not fit."""


@dataclass(frozen=True)
class Requirement:
    """At least `count` objects of class `name`; all of `color`, and `relation` to the objects that met requirement
    number `target` of the same prompt, where those are given.
    """

    name: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int | None = None


@dataclass(frozen=True)
class Task:
    """One prompt: `include` must all hold, none of `exclude` may (an exclusion is met at `count` or more objects).
    `index` is the prompt's place in its file, from 0.
    """

    index: int
    tag: str
    prompt: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()


def read_tasks(path: Path) -> list[Task]:
    """Every prompt of a `geneval_metadata.jsonl`, in the file's order (the published one has 553).

    Raises GenEvalError, naming file and line, for a file that is missing, empty or not JSON lines, and for a class,
    colour, relation, count or target that the rules do not know.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GenEvalError(f"{path}: not readable ({error}); give GenEval's geneval_metadata.jsonl") from error
    tasks: list[Task] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            tasks.append(_task(line, len(tasks), f"{path}, line {number}"))
    if not tasks:
        raise GenEvalError(f"{path}: has no prompts; give GenEval's geneval_metadata.jsonl")
    return tasks


def _task(line: str, index: int, where: str) -> Task:
    try:
        row = parse_json(line)
    except ValueError as error:
        words = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise GenEvalError(f"{where}: not JSON ({words}); the file is cut off or of another kind") from error
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) and row[k] for k in ("tag", "prompt")):
        raise GenEvalError(f"{where}: tag and prompt must be text; give an object with tag, include and prompt")
    include = _requirements(row.get("include", []), f"{where}: include")
    exclude = _requirements(row.get("exclude", []), f"{where}: exclude")
    if not include and not exclude:
        raise GenEvalError(f"{where}: asks for nothing; give include or exclude")
    for item in exclude:
        if item.color is not None or item.relation is not None:
            raise GenEvalError(f"{where}: exclude knows class and count alone; take color and position out")
    return Task(index, row["tag"], row["prompt"], include, exclude)


def _requirements(rows: object, where: str) -> tuple[Requirement, ...]:
    if not isinstance(rows, list):
        raise GenEvalError(f"{where} is {rows!r}; give a list of objects")
    return tuple(_requirement(row, place, where) for place, row in enumerate(rows))


def _requirement(row: object, place: int, where: str) -> Requirement:
    if not isinstance(row, Mapping) or not {"class", "count"} <= set(row) <= {"class", "count", "color", "position"}:
        raise GenEvalError(f"{where}[{place}] is {row!r}; give class, count and, where wanted, color and position")
    name, count, color = row["class"], row["count"], row.get("color")
    if name not in CLASS_NAMES:
        raise GenEvalError(f"{where}[{place}].class {name!r} is none of GenEval's 80 object names; correct it")
    if type(count) is not int or count < 1:
        raise GenEvalError(f"{where}[{place}].count is {count!r}; give a whole number from 1")
    if color is not None and color not in COLORS:
        raise GenEvalError(f"{where}[{place}].color {color!r} is unknown; use one of {', '.join(COLORS)}")
    if "position" not in row:
        return Requirement(name, count, color)
    position = row["position"]
    if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
        raise GenEvalError(f"{where}[{place}].position is {position!r}; give [one of {', '.join(RELATIONS)}, target]")
    relation, target = position
    if type(target) is not int or not 0 <= target < place:
        raise GenEvalError(f"{where}[{place}].position: target {target!r} must be the number of an earlier entry")
    return Requirement(name, count, color, relation, target)
