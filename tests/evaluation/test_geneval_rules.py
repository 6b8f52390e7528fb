"""GenEval's rules: the published script's verdicts on random detections (golden), and each rule by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rank_e.evaluation.geneval.rules import (
    PUBLISHED,
    Box,
    Detection,
    Thresholds,
    Verdict,
    check,
    objects_of,
    overlap,
    relations,
)
from rank_e.evaluation.geneval.tasks import GenEvalError, Task, read_tasks
from tests.helpers.geneval_tasks import PLACED, RED_CARS, SINGLE, TWO_CLOCKS, write

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "geneval_rules.json").read_text())


TaskOf = Callable[[object], Task]


@pytest.fixture
def task_of(tmp_path: Path) -> TaskOf:
    return lambda row: read_tasks(write(tmp_path / "one.jsonl", row))[0]


def thing(name: str, score: float = 0.95, box: Box = (0, 0, 10, 10)) -> Detection:
    return Detection(name, score, box)


def no_colors(objects: Sequence[Detection], name: str) -> list[str]:
    raise AssertionError("no colour was asked for")


def verdict(task: Task, *found: Detection, colors: Sequence[str] = (), thresholds: Thresholds = PUBLISHED) -> Verdict:
    classify = (lambda objects, name: list(colors)[: len(objects)]) if colors else no_colors
    return check(task, objects_of(found, task.tag, thresholds), classify, thresholds)


@pytest.mark.parametrize("tag", ["single_object", "two_object", "counting", "colors", "position", "color_attr"])
def test_verdicts_and_kept_objects_are_the_published_scripts(tag: str, task_of: TaskOf) -> None:
    cases = [case for case in GOLDEN["cases"] if case["metadata"]["tag"] == tag]
    assert len(cases) == 60 and {case["correct"] for case in cases} == {True, False}
    for case in cases:
        task = task_of(case["metadata"])
        thresholds = Thresholds(max_overlap=case["max_overlap"])
        colors = {tuple(row[:6]): row[6] for row in case["detections"]}
        objects = objects_of([Detection(r[0], r[1], tuple(r[2:6])) for r in case["detections"]], tag, thresholds)
        assert {name: [item.score for item in items] for name, items in objects.items()} == case["kept"]

        def classify(items: Sequence[Detection], name: str, colors: dict[tuple, str] = colors) -> list[str]:
            return [colors[(item.name, item.score, *item.box)] for item in items]

        result = check(task, objects, classify, thresholds)
        assert (result.correct, len(result.reasons)) == (case["correct"], case["failures"]), case


def test_relations_and_overlaps_are_the_published_scripts() -> None:
    for a, b, expected, iou in GOLDEN["relations"]:
        assert sorted(relations(tuple(a), tuple(b), 0.1)) == expected
        assert overlap(tuple(a), tuple(b)) == pytest.approx(iou, abs=1e-12)


def test_an_object_needs_more_than_the_threshold(task_of: TaskOf) -> None:
    task = task_of(SINGLE)
    assert verdict(task, thing("cat", 0.31)).correct
    assert not verdict(task, thing("cat", 0.3)).correct
    assert not verdict(task, thing("dog", 0.99)).correct
    assert verdict(task, thing("cat"), thing("cat"), thing("dog")).correct  # more is no fault outside counting
    assert verdict(task).reasons == ("expected cat>=1, found 0",)


def test_counting_needs_the_exact_number_at_the_higher_threshold(task_of: TaskOf) -> None:
    task = task_of(TWO_CLOCKS)
    sure, unsure = thing("clock", 0.91), thing("clock", 0.9)
    assert verdict(task, sure, sure, unsure, unsure).correct
    assert verdict(task, sure, unsure).reasons == ("expected clock>=2, found 1",)
    assert verdict(task, sure, sure, sure).reasons == ("expected clock<3, found 3",)


def test_a_class_keeps_its_sixteen_best() -> None:
    many = [thing("cat", 0.4 + i / 100) for i in range(20)]
    kept = objects_of(many, "single_object", PUBLISHED)["cat"]
    assert [item.score for item in kept] == sorted((item.score for item in many), reverse=True)[:16]


def test_suppression_is_off_by_default_and_greedy_within_a_class() -> None:
    a, b, c = (
        thing("cat", 0.9, (0, 0, 9, 9)),
        thing("cat", 0.8, (3, 0, 12, 9)),
        thing("cat", 0.7, (6, 0, 15, 9)),
    )
    other = thing("dog", 0.6, (0, 0, 9, 9))
    assert overlap(a.box, b.box) == pytest.approx(70 / 130)
    assert objects_of([a, a], "colors", PUBLISHED) == {"cat": [a, a]}
    thinned = objects_of([c, b, other, a], "colors", Thresholds(max_overlap=0.5))
    assert thinned == {"cat": [a, c], "dog": [other]}  # c overlaps b, which went; a and c share 40 / 160
    assert objects_of([a, b], "colors", Thresholds(max_overlap=70 / 130))["cat"] == [a]  # reaching it is enough
    assert overlap((0, 0, 4, 4), (10, 10, 12, 12)) == 0


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 50, 10, 60), {"left of"}),
        ((90, 50, 100, 60), {"right of"}),
        ((50, 0, 60, 10), {"above"}),
        ((50, 90, 60, 100), {"below"}),
        ((0, 0, 10, 10), {"left of", "above"}),
        ((90, 90, 100, 100), {"right of", "below"}),
        ((50, 50, 60, 60), set()),
        ((52, 48, 62, 58), set()),  # 2 px away: within a tenth of the summed sizes (20)
        ((53, 50, 63, 60), set()),  # shrunk to 1 of 3 px: a third, not half
        ((54, 50, 64, 60), set()),  # 2 of 4: exactly half is not more
        ((55, 50, 65, 60), {"right of"}),  # 3 of 5
        ((80, 60, 90, 70), {"right of"}),  # far to the right and a little down
    ],
)
def test_relations_by_hand(box: Box, expected: set[str]) -> None:
    assert relations(box, (50, 50, 60, 60), 0.1) == expected


def test_relations_shrink_by_the_sizes_of_both_objects() -> None:
    small, wide = (40, 0, 50, 10), (60, 0, 260, 10)
    assert relations(small, wide, 0.1) == {"left of"}
    assert relations(small, wide, 0.2) == {"left of"}  # 115 - 0.2 * 210 = 73 of 115
    assert relations(small, wide, 0.3) == set()  # 52 of 115


def test_position_depends_on_the_most_confident_objects(task_of: TaskOf) -> None:
    task = task_of(PLACED)
    kite = thing("kite", 0.9, (60, 0, 70, 10))
    left, right = thing("dog", 0.8, (0, 0, 10, 10)), thing("dog", 0.7, (120, 0, 130, 10))
    assert verdict(task, kite, left, right).correct
    assert verdict(task, kite, replace(left, score=0.6), right).reasons == (
        "expected dog left of target, found right of",
    )
    assert verdict(task, left).reasons == ("expected kite>=1, found 0", "no target for dog to be left of")


def test_every_object_must_hold_the_relation_to_every_target(task_of: TaskOf) -> None:
    row = json.loads(json.dumps(PLACED))
    row["include"][0]["count"] = row["include"][1]["count"] = 2
    task = task_of(row)
    kites = [thing("kite", 0.9, (60, 0, 70, 10)), thing("kite", 0.9, (30, 0, 40, 10))]
    near, far = thing("dog", 0.9, (0, 0, 10, 10)), thing("dog", 0.9, (45, 0, 55, 10))
    assert verdict(task, *kites, near, replace(near, box=(2, 0, 12, 10))).correct
    assert not verdict(task, *kites, near, far).correct


def test_colors_are_asked_of_the_best_objects_only(task_of: TaskOf) -> None:
    task = task_of(RED_CARS)
    cars = [thing("car", 0.9 - i / 10) for i in range(3)]
    asked: list[list[float]] = []

    def classify(objects: Sequence[Detection], name: str) -> list[str]:
        asked.append([item.score for item in objects])
        assert name == "car"
        return ["red", "blue"]

    result = check(task, objects_of(cars, task.tag, PUBLISHED), classify, PUBLISHED)
    assert asked == [[cars[0].score, cars[1].score]]
    assert result.reasons == ("expected red car>=2, found 1 red, 1 blue",)
    assert verdict(task, *cars, colors=["red", "red"]).correct
    assert verdict(task, cars[0]).reasons == ("expected car>=2, found 1",)  # too few: the classifier is not called


def test_an_object_of_the_wrong_colour_is_no_target(task_of: TaskOf) -> None:
    row = json.loads(json.dumps(PLACED))
    row["include"][0]["color"] = "green"
    kite, dog = thing("kite", 0.9, (60, 0, 70, 10)), thing("dog", 0.8, (0, 0, 10, 10))
    assert verdict(task_of(row), kite, dog, colors=["green"]).correct
    assert verdict(task_of(row), kite, dog, colors=["pink"]).reasons == (
        "expected green kite>=1, found 1 pink",
        "no target for dog to be left of",
    )


@pytest.mark.parametrize("colors", [["red"], ["red", "mauve"]])
def test_a_classifier_must_name_a_known_colour_for_each_object(colors: list[str], task_of: TaskOf) -> None:
    with pytest.raises(GenEvalError, match=r"gave .* for 2 objects"):
        verdict(task_of(RED_CARS), thing("car"), thing("car"), colors=colors)


@pytest.mark.parametrize(
    "bad", [{"confidence": -0.1}, {"counting": 1.5}, {"max_objects": 0}, {"position": float("nan")}]
)
def test_thresholds_outside_their_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(GenEvalError, match=f"geneval.{next(iter(bad))}"):
        Thresholds(**bad)
