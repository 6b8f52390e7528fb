"""The columns of the report: as the evaluations describe them, with direction, unit and precision of each."""

import math
from pathlib import Path
from typing import Any

import pytest

from rank_e.evaluation.metric import Metric
from stages.report.data import Results, load_results
from stages.report.metrics import Column, columns_of
from tests.helpers.fake_artifacts import PUBLISHED, SHAPES, World, write_project

SHARE = Column("Accuracy", "higher", "", unit="%", decimals=1, key="accuracy", group="score")


@pytest.mark.parametrize("world", [SHAPES, PUBLISHED])
def test_the_columns_are_what_the_evaluations_describe_in_their_order(tmp_path: Path, world: World) -> None:
    found = load_results(write_project(tmp_path, seeds=[0], rounds=1, world=world), tmp_path).metrics
    assert [metric.key for metric in found] == list(world.levels)
    distances = {metric.key for metric in found if metric.group == "distance"}
    assert distances == {"fd", "fd_mid", "fd_patch"} if world is SHAPES else {"coco", "gram"}
    assert {metric.key for metric in found if metric.better == "lower"} == distances | {"token_kl"}
    for metric in found:
        group, described = world.described[metric.key]
        assert (metric.group, metric.name, metric.meaning) == (group, described.name, described.meaning)


def test_two_metrics_of_one_name_are_told_apart() -> None:
    fid, clip = Metric("FID", "lower", ""), Metric("CLIP score", "higher", "")
    rows = [fid.described("coco", "distance"), fid.described("flickr", "distance"), clip.described("clip", "score")]
    assert [column.name for column in columns_of(rows)] == ["FID (coco)", "FID (flickr)", "CLIP score"]


def test_a_metric_of_any_scale_has_four_digits_in_values_and_differences() -> None:
    plain = Column("sharpness", "higher", "", key="sharpness", group="score")
    for value, words in (
        (0.2196, "0.2196"),
        (0.01234, "0.01234"),
        (71.04, "71.04"),
        (1503.2, "1503.2"),
        (0.0, "0.0000"),
    ):
        assert plain.text(value) == words
    assert plain.scaled_like(71.04).text(0.0123, True) == "+0.01"
    assert plain.scaled_like(0.2196).text(-0.0123, True) == "−0.0123"
    assert plain.scaled_like(None) == plain
    assert SHARE.scaled_like(0.001) == SHARE


def test_shares_differ_in_points_units_follow_and_minus_signs_are_real() -> None:
    assert SHARE.text(0.4216) == "42.2 %"
    assert SHARE.text(-0.013, True) == "−1.3 pp"
    assert SHARE.text(None) == SHARE.text(math.nan) == "–"
    pause = Column("Pause", "lower", "", unit="ms", decimals=0, key="pause", group="score")
    assert (pause.text(12.3), pause.text(-2.0, True)) == ("12 ms", "−2 ms")


def test_categories_are_those_of_a_share_before_a_score() -> None:
    score = Column("CLIP score", "higher", "", decimals=2, key="clip", group="score")
    hps = Column("HPSv2", "higher", "", decimals=4, key="hps", group="benchmark")
    entry: dict[str, Any] = {"value": 0.5, "categories": {name: {"value": 0.5, "low": 0.4} for name in ("c", "a b")}}
    base = dict.fromkeys(("clip", "hps", "accuracy"), entry)

    def shown(*metrics: Column) -> tuple[Column, list[str]] | None:
        return Results("shapes", metrics, [], [0], [1], None, False, base=base).by_category

    assert shown(hps, score, SHARE) == (SHARE, ["a b", "c"])
    assert shown(hps, score) == (score, ["a b", "c"])
    assert shown(hps) == (hps, ["a b", "c"])
    assert shown(Column("aesthetic", "higher", "", key="aesthetic", group="score")) is None
