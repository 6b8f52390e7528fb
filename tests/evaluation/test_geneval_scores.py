"""GenEval's prompt file and its scores: what is read, what is refused, and the intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rank_e.evaluation.geneval.evaluator import ImageResult
from rank_e.evaluation.geneval.scores import summarise
from rank_e.evaluation.geneval.tasks import CLASS_NAMES, GenEvalError, Requirement, Task, read_tasks
from tests.helpers.geneval_tasks import PLACED, RED_CARS, SINGLE, TWO_CLOCKS, write


def test_prompts_are_read_in_order_with_their_requirements(tmp_path: Path) -> None:
    tasks = read_tasks(write(tmp_path / "m.jsonl", SINGLE, TWO_CLOCKS, PLACED, RED_CARS))
    assert [task.index for task in tasks] == [0, 1, 2, 3]
    assert tasks[1].exclude == (Requirement("clock", 3),)
    assert tasks[2].include[1] == Requirement("dog", 1, None, "left of", 0)
    assert tasks[3].include == (Requirement("car", 2, "red"),)
    assert len(set(CLASS_NAMES)) == 80 and {"computer mouse", "tv remote", "computer keyboard"} <= set(CLASS_NAMES)


def include(**changes: object) -> dict[str, object]:
    return {**SINGLE, "include": [{"class": "cat", "count": 1, **changes}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (include(**{"class": "mouse"}), "'mouse' is none of GenEval's 80"),
        (include(count=0), "count is 0"),
        (include(count=True), "count is True"),
        (include(color="grey"), "color 'grey' is unknown"),
        (include(position=["near", 0]), "position is"),
        (include(position=["above", 0]), "target 0 must be the number of an earlier entry"),
        (include(colour="red"), "give class, count"),
        ({**SINGLE, "include": []}, "asks for nothing"),
        ({**SINGLE, "include": {}}, "include is {}"),
        ({**SINGLE, "exclude": [{"class": "cat", "count": 1, "color": "red"}]}, "exclude knows class and count alone"),
        ({**SINGLE, "prompt": ""}, "tag and prompt must be text"),
        ([], "tag and prompt must be text"),
    ],
)
def test_a_bad_prompt_is_named_by_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(GenEvalError, match=r"m\.jsonl, line 2.*") as raised:
        read_tasks(write(tmp_path / "m.jsonl", SINGLE, row))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_are_missing_empty_or_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GenEvalError, match=r"none\.jsonl: not readable"):
        read_tasks(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(GenEvalError, match="has no prompts"):
        read_tasks(tmp_path / "empty.jsonl")
    (tmp_path / "cut.jsonl").write_text(json.dumps(SINGLE) + '\n{"tag": "col')
    with pytest.raises(GenEvalError, match="line 2: not JSON"):
        read_tasks(tmp_path / "cut.jsonl")


def tasks_of(**counts: int) -> list[Task]:
    tags = [tag for tag, n in counts.items() for _ in range(n)]
    return [Task(i, tag, f"prompt {i}", (Requirement("cat", 1),)) for i, tag in enumerate(tags)]


def result_of(task: Task, sample: int, correct: bool) -> ImageResult:
    return ImageResult(task.index, sample, task.tag, task.prompt, correct, "" if correct else "no", "{}")


def test_overall_is_the_mean_over_tasks_not_over_images() -> None:
    tasks = tasks_of(counting=1, colors=3)
    right = {0: 4, 1: 1, 2: 0, 3: 2}  # correct images of four
    results = [result_of(task, s, s < right[task.index]) for task in tasks for s in range(4)]
    scores = summarise(tasks, reversed(results), seed=1)
    assert scores.tasks == {"counting": 1.0, "colors": 0.25}
    assert scores.overall == pytest.approx((1 + 0.25) / 2)
    assert (scores.images, scores.prompts, scores.count) == (7 / 16, 3 / 4, 16)


def test_intervals_draw_prompts_within_their_task() -> None:
    tasks = tasks_of(counting=80, colors=80, position=1)
    results = [result_of(t, s, t.index % 2 == 0) for t in tasks for s in range(4)]  # a prompt is all right or all wrong
    scores = summarise(tasks, results, seed=1, resamples=4000)
    low, high = scores.intervals["counting"]
    spread = 1.96 * (0.25 / 80) ** 0.5  # of 80 prompts; of 320 images it would be half as wide
    assert (low, high) == pytest.approx((0.5 - spread, 0.5 + spread), abs=0.02)
    assert scores.intervals["position"] == (1.0, 1.0)
    low, high = scores.intervals["overall"]  # the tasks' draws are independent: variances add
    wide = spread * 2**0.5 / 3
    assert (low, high) == pytest.approx((2 / 3 - wide, 2 / 3 + wide), abs=0.01)
    assert summarise(tasks, results[::-1], seed=1, resamples=4000) == scores
    assert summarise(tasks, results, seed=2, resamples=4000).intervals != scores.intervals


def test_scores_need_every_image() -> None:
    tasks = tasks_of(counting=2, colors=1)
    results = [result_of(task, sample, True) for task in tasks for sample in range(4)]
    with pytest.raises(GenEvalError, match="7 of 12 images have no result"):
        summarise(tasks, results[:5], seed=0)


def test_results_that_do_not_fit_are_refused() -> None:
    tasks = tasks_of(colors=2)
    fine = result_of(tasks[0], 0, True)
    for results, message in [
        ([fine, fine], "occurs twice"),
        ([replace(fine, prompt="another")], "none of these prompts"),
        ([replace(fine, index=2)], "none of these prompts"),
        ([replace(fine, sample=4)], "none of these prompts"),
    ]:
        with pytest.raises(GenEvalError, match=message):
            summarise(tasks, results, seed=0)
    with pytest.raises(GenEvalError, match="0 of 0"):
        summarise([], [], seed=0)
