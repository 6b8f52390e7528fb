"""Names of metrics: none twice, and none that means something else in an evaluation's metrics."""

from pathlib import Path
from typing import Any

import pytest

from rank_e.config import ConfigError, load
from rank_e.config.evaluation import EvaluationParams, taken_names, unknown_names
from rank_e.config.profiles import load_profile, resolve

PARAMS = load_profile("profiles/tiny.yaml").evaluation
PROMPTS = {"kind": "prompts", "file": "p.txt", "column": None, "category": None, "prompts": 0, "samples_per_prompt": 1}
OWN = {"kind": "a.b:c"}


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({}, []),
        ({"scores": {"original": OWN}}, ["scores.original: the name original"]),
        ({"distances": {"reward": OWN}}, ["distances.reward: the name reward"]),
        ({"scores": {"fd": OWN}}, ["distances.fd: the name fd", "scores.fd: the name fd"]),
        ({"scores": {"fd_low": OWN}}, ["scores.fd_low: the name fd_low"]),
        ({"scores": {"fd_matched": OWN}}, ["scores.fd_matched: the name fd_matched", "matched: the name fd_matched"]),
        (
            {"scores": {"diversity": OWN}},
            ["scores.diversity: the name diversity", "diversity: the name diversity"],
        ),
        (
            {"scores": {"mine_clip": OWN}, "benchmarks": {"mine": PROMPTS | {"scores": {"clip": OWN, "odd": OWN}}}},
            ["scores.mine_clip: the name mine_clip", "benchmarks.mine: the name mine_clip"],
        ),
    ],
)
def test_a_name_that_is_taken_is_a_line(changes: dict[str, Any], places: list[str]) -> None:
    found = taken_names(EvaluationParams.model_validate(PARAMS.model_dump() | changes))
    assert [line.partition(" is taken, allowed: any name but ")[0] for line in found] == [
        f"evaluation.{place}" for place in places
    ]


def test_a_params_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(resolve("profiles/tiny.yaml").replace("    accuracy:\n", "    images:\n"))
    with pytest.raises(ConfigError, match=r"evaluation\.scores\.images: the name images is taken, allowed: any"):
        load(path)


MATCHED = {"score": "accuracy", "distances": ["fd"], "least": 4}


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"matched": None, "diversity": None}, []),
        (
            {"matched": MATCHED | {"score": "fd"}},
            ['evaluation.matched.score = "fd": must be one of evaluation.scores, once: clip, accuracy'],
        ),
        (
            {"matched": MATCHED | {"distances": ["fd_patch", "fd_patch", "accuracy"]}},
            [
                'evaluation.matched.distances.1 = "fd_patch": must be one of evaluation.distances, once: fd, fd_mid',
                'evaluation.matched.distances.2 = "accuracy": must be one of evaluation.distances, once: fd, fd_mid',
            ],
        ),
        (
            {"diversity": "clip"},
            ['evaluation.diversity = "clip": must be one of evaluation.distances, once: fd, fd_mid, fd_patch'],
        ),
    ],
)
def test_what_is_matched_must_be_there(changes: dict[str, Any], lines: list[str]) -> None:
    assert unknown_names(EvaluationParams.model_validate(PARAMS.model_dump() | changes)) == lines


def test_a_half_of_a_caption_is_never_empty(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(resolve("profiles/shapes.yaml").replace("    least: 4 ", "    least: 1 "))
    with pytest.raises(ConfigError, match=r"evaluation\.matched\.least = 1: must be a whole number in \[2, 1000000\]"):
        load(path)
    path.write_text(resolve("profiles/shapes.yaml").replace("  diversity: fd ", "  diversity: x "))
    with pytest.raises(ConfigError, match=r'evaluation\.diversity = "x": must be one of evaluation\.distances'):
        load(path)
