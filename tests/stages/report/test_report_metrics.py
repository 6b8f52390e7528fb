"""The columns of the report: taken from the params, with the direction, unit and precision that fit each."""

import math
from pathlib import Path

import pytest

from rank_e.config import Params
from rank_e.config.types import Plugin
from stages.report.data import Results
from stages.report.metrics import Metric, catalogue
from tests.helpers.fake_artifacts import PUBLISHED, SHAPES, World, write_params

SHARE = Metric("accuracy", "score", "Accuracy", "higher", 1, "", True)


def with_judges(params: Params, **sections: dict[str, Plugin]) -> Params:
    return params.model_copy(update={"evaluation": params.evaluation.model_copy(update=sections)})


@pytest.mark.parametrize("world", [SHAPES, PUBLISHED])
def test_the_metrics_are_the_params_judges_in_their_order(tmp_path: Path, world: World) -> None:
    found = catalogue(write_params(tmp_path, seeds=[0], rounds=1, world=world))
    assert [metric.key for metric in found] == list(world.levels)
    distances = {metric.key for metric in found if metric.group == "distance"}
    assert distances == {"fd", "fd_mid", "fd_patch"} if world is SHAPES else {"coco", "gram"}
    assert {metric.key for metric in found if metric.better == "lower"} == distances | {"token_kl"}


def test_two_judges_of_one_kind_are_told_apart(tmp_path: Path) -> None:
    params = write_params(tmp_path, seeds=[0], rounds=1)
    found = catalogue(with_judges(params, distances={name: Plugin(kind="inception") for name in ("coco", "flickr")}))
    assert [metric.name for metric in found[:3]] == ["FID (coco)", "FID (flickr)", "CLIP score"]


def test_a_metric_of_any_scale_has_four_digits_in_values_and_differences() -> None:
    plain = Metric("sharpness", "score", "sharpness", "higher", None, "")
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


def test_shares_differ_in_points_and_minus_signs_are_real() -> None:
    assert SHARE.text(0.4216) == "42.2 %"
    assert SHARE.text(-0.013, True) == "−1.3 pp"
    assert SHARE.text(None) == SHARE.text(math.nan) == "–"


def test_categories_are_those_of_a_share_before_a_score_and_no_interval_is_one() -> None:
    score = Metric("clip", "score", "CLIP score", "higher", 2, "")
    hps = Metric("hps", "benchmark", "HPSv2", "higher", 4, "")
    ends = ("", "_low", "_high", "@original")
    base = {f"{key}/{name}{end}": 0.5 for key in ("clip", "hps", "accuracy") for name in ("a b", "c") for end in ends}

    def shown(*metrics: Metric) -> tuple[Metric, list[str]] | None:
        return Results("shapes", metrics, [], [0], [1], None, False, base=base).by_category

    assert shown(hps, score, SHARE) == (SHARE, ["a b", "c"])
    assert shown(hps, score) == (score, ["a b", "c"])
    assert shown(hps) == (hps, ["a b", "c"])
    assert shown(Metric("aesthetic", "score", "aesthetic", "higher", None, "")) is None
