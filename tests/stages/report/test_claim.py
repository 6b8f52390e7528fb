"""The claim's numbers and the table at a run's end: against scipy, against a hand count, within the terminal."""

import json
import shutil
from pathlib import Path

import pytest
from scipy import stats

from rank_e.errors import RankEError
from rank_e.evaluation.student import mean_interval, p_value
from stages.report.claim import BAR, CLAIM, met, numbers, read_claim, write_json
from stages.report.data import load_results
from stages.report.ending import WIDTH, closing, ending
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import CATEGORIES, evaluation_metrics, write_project


def test_p_and_interval_are_scipys() -> None:
    values = [1.0, 2.5, 0.5, 3.0, -0.2]
    found = stats.ttest_1samp(values, 0.0)
    assert p_value(values) == pytest.approx(found.pvalue)
    low, high = found.confidence_interval(0.95)
    assert mean_interval(values) == (pytest.approx(1.36), pytest.approx(low), pytest.approx(high))
    assert p_value([1.0]) is None and p_value([0.0, 0.0]) == 1.0 and p_value([2.0, 2.0]) == 0.0


def test_the_numbers_are_those_of_the_artifacts(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0, 1, 2], rounds=2, sft=True)
    found = numbers(load_results(params, tmp_path))
    assert (found["seeds"], found["rounds"]) == ([0, 1, 2], 2)
    assert list(found["arms"]) == ["base", "sft", "frozen", "coevolved"]
    frozen, coevolved = ([evaluation_metrics(arm, seed, 2) for seed in range(3)] for arm in ("frozen", "coevolved"))
    base = evaluation_metrics("base", 0, 0)
    rows = [row["fd"]["value"] for row in frozen]
    level = found["arms"]["frozen"]["fd"]
    assert (level["mean"], level["n"]) == (pytest.approx(sum(rows) / 3, rel=1e-5), 3)
    alone = {"mean": pytest.approx(base["fd"]["value"], rel=1e-5), "low": None, "high": None, "n": 1}
    assert found["arms"]["base"]["fd"] == alone
    assert {f"accuracy/{name}" for name in CATEGORIES} <= set(found["arms"]["coevolved"])

    change = found["paired"]["frozen-base"]["clip"]
    wanted = [row["clip"]["value"] - base["clip"]["value"] for row in frozen]
    assert list(change["seeds"].values()) == pytest.approx(wanted, rel=1e-4)
    assert change["p"] == pytest.approx(stats.ttest_1samp(wanted, 0).pvalue, rel=1e-3)
    assert (change["n"], change["agree"]) == (3, 3)
    arms = found["paired"]["coevolved-frozen"]["fd"]["seeds"]
    gaps = [a["fd"]["value"] - b["fd"]["value"] for a, b in zip(coevolved, frozen, strict=True)]
    assert list(arms.values()) == pytest.approx(gaps, rel=1e-4)
    same = found["paired"]["frozen_tokens:coevolved-original"]["fd"]
    assert list(same["seeds"].values()) == pytest.approx([-0.05, -0.10, -0.15])
    beaten = found["paired"]["frozen_tokens:coevolved-affine"]["fd"]
    assert list(beaten["seeds"].values()) == pytest.approx([-0.04, -0.09, -0.14])
    assert found["same_tokens_by_round"]["frozen_tokens:coevolved-original"]["1"]["fd"] == pytest.approx(-0.10)
    assert set(found["by_round"]["frozen"]) == {"0", "1", "2"}
    assert found["bar"].keys() == BAR.keys() and found["bar"]["d"] is None
    json.dumps(found, allow_nan=False)


def test_what_a_decoder_lacks_is_left_out_and_a_missing_reference_only_named(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0, 1], rounds=1)
    results = load_results(params, tmp_path)
    for table in results.factorial.values():
        del table["frozen"]["affine"]["fd"]
    found = numbers(results)["paired"]["frozen_tokens:coevolved-affine"]
    assert "fd" not in found and found["fd_mid"]["n"] == 2
    shutil.rmtree(tmp_path / artifact_path("reference"))
    assert load_results(params, tmp_path, partial=True).missing == [str(artifact_path("reference"))]


@pytest.mark.parametrize(
    ("low", "high", "sign", "answer"),
    [
        (0.1, 1.0, 1, True),
        (-0.1, 1.0, 1, False),
        (-1.0, -0.1, -1, True),
        (-1.0, 0.1, -1, False),
        (-1.0, 0.1, 0, True),
        (-1.0, -0.1, 0, False),
        (None, None, 1, None),
    ],
)
def test_a_bar_is_met_where_the_interval_lies_as_it_must(
    low: float | None, high: float | None, sign: int, answer: bool | None
) -> None:
    assert met({"x": {"fd": {"low": low, "high": high}}}, {"x": {"fd": sign}}) is answer
    assert met({}, {"x": {"fd": sign}}) is None


def test_the_ending_fits_a_terminal_with_and_without_a_claim(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0, 1], rounds=2)
    results = load_results(params, tmp_path)
    assert read_claim(tmp_path, params) is None
    bare = ending(results, None).splitlines()
    claim = numbers(results) | {"backbone": "shapes"}
    write_json(claim, tmp_path / CLAIM)
    read = read_claim(tmp_path, params)
    assert read is not None
    lines = (ending(results, read) + "\n" + closing(read)).splitlines()
    where_to_look = 3
    assert len(bare) + 1 + where_to_look <= 30 and len(lines) + where_to_look <= 30
    assert all(len(line) <= WIDTH for line in (*bare, *lines)), [line for line in lines if len(line) > WIDTH]
    fd = next(line for line in lines if line.startswith("FD"))
    entry = claim["paired"]["frozen-base"]["fd"]
    assert f"{entry['mean']:+.2f}" in fd and ("*" in fd) == (entry["low"] > 0 or entry["high"] < 0)
    assert "*" not in "\n".join(bare)


def test_a_star_stands_on_the_claims_figures_alone(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=1)
    results = load_results(params, tmp_path)
    claim = numbers(results) | {"backbone": "shapes", "seeds": [0, 1, 2], "bar": {"a": True, "b": False, "d": None}}
    wide, clear, worse = ({"mean": -7.25, "low": low, "high": high} for low, high in ((-9, 1), (-9, -1), (1, 9)))
    claim["paired"]["coevolved-frozen"] = {"fd": clear, "fd_mid": wide, "clip": worse | {"mean": -7.25, "high": -1}}
    claim["paired"]["frozen_tokens:coevolved-affine"] = {"fd": wide, "fd_mid": clear}
    text = ending(results, claim)
    own = text[text.index("coevolved - frozen:") : text.index("claim of 3 seeds:")]
    assert "*" not in own
    of_claim = text[text.index("claim of 3 seeds:") :].splitlines()[0]
    assert "FD −7.25*" in of_claim.replace("Mid-level FD", "") and "not Mid-level FD, CLIP score" in of_claim
    assert "clear of affine in the claim: Mid-level FD −7.25*, not FD" in text
    assert closing(claim).endswith("(a) met; (b) not met.")


def test_a_claim_that_is_damaged_or_of_another_backbone_is_not_believed(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=1)
    claim = numbers(load_results(params, tmp_path))
    write_json(claim | {"backbone": "llamagen"}, tmp_path / CLAIM)
    assert read_claim(tmp_path, params) is None
    (tmp_path / CLAIM).write_text("[]")
    with pytest.raises(RankEError, match="is no claim"):
        read_claim(tmp_path, params)
