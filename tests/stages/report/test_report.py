"""The report: right statistics, every seed, every direction, honest readings; `test_page.py` has the page as such."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from rank_e.config import Params
from stages.report.curves import by_round, pareto
from stages.report.data import (
    Results,
    against_start,
    between,
    difference,
    factorial_rows,
    load_results,
    of_decoder,
)
from stages.report.figures import ticks
from stages.report.metrics import Column
from stages.report.terminal import print_results
from stages.report.writing import write_report
from stages.runtime.artifacts import ArtifactError
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import PROMPTS, PUBLISHED, SHAPES, evaluation_metrics, write_project
from tests.helpers.page import read_page

HIGHER = Column("CLIP score", "higher", "", decimals=2, key="clip", group="score")
LOWER = Column("FD", "lower", "", decimals=2, key="fd", group="distance")
NEARER = Column("Token entropy", "nearer", "", decimals=3, key="token_entropy", group="tokens")
SHARE = Column("Accuracy", "higher", "", unit="%", decimals=1, key="accuracy", group="score")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    folder = tmp_path_factory.mktemp("run")
    return folder, write_project(folder)


def test_the_interval_is_the_paired_t_interval_of_scipy() -> None:
    first, second = {0: 1.0, 1: 2.5, 2: 2.0, 5: 4.0}, {0: 0.5, 1: 0.5, 2: 2.5, 5: 1.0}
    item = difference("a − b", HIGHER, first, second)
    assert item is not None and item.low is not None and item.high is not None
    expected = stats.ttest_rel(list(first.values()), list(second.values())).confidence_interval(0.95)
    assert (item.low, item.high) == pytest.approx((expected.low, expected.high))
    assert item.mean == pytest.approx(1.25)
    assert item.values == pytest.approx({0: 0.5, 1: 2.0, 2: -0.5, 5: 3.0})


def test_a_way_names_the_rounds_that_were_judged(project: tuple[Path, Params]) -> None:
    folder, params = project
    results = replace(load_results(params, folder), rounds=[2])
    drawing = pareto(results, LOWER)
    assert {int(found) for found in re.findall(r"frozen, mean, round (\d+):", drawing)} == {0, 2}


def test_pairs_need_both_sides_and_one_seed_has_no_interval() -> None:
    item = difference("a − b", LOWER, {0: 1.0, 1: 9.0}, {0: 2.0})
    assert item is not None and item.values == {0: -1.0}
    assert (item.low, item.high, item.verdict) == (None, None, "one seed")
    assert difference("a − b", LOWER, {0: 1.0}, {1: 2.0}) is None


@pytest.mark.parametrize(
    ("metric", "values", "verdict", "better"),
    [
        (LOWER, {0: -1.0, 1: -1.1, 2: -0.9}, "better", 3),
        (LOWER, {0: 1.0, 1: 1.1, 2: 0.9}, "worse", 0),
        (HIGHER, {0: -1.0, 1: -1.1, 2: -0.9}, "worse", 0),
        (HIGHER, {0: 1.0, 1: -0.9, 2: 1.1}, "open", 2),
        (NEARER, {0: 1.0, 1: 1.1, 2: 0.9}, "differs", 0),
        (SHARE, {0: 0.0, 1: 0.0, 2: 0.0}, "open", 0),
    ],
)
def test_a_verdict_needs_the_interval_and_the_direction(
    metric: Column, values: dict, verdict: str, better: int
) -> None:
    item = difference("x", metric, values, dict.fromkeys(values, 0.0))
    assert item is not None and (item.verdict, item.better) == (verdict, better)


def test_results_pair_arms_by_seed_and_rows_by_policy(project: tuple[Path, Params]) -> None:
    folder, params = project
    results = load_results(params, folder)
    assert (results.pairs, results.last, results.missing) == ([("coevolved", "frozen")], 2, [])
    found = {item.metric.key: item for item in between(results, "coevolved", "frozen", 2)}
    assert set(found) == set(SHAPES.levels)
    for seed in params.seeds:
        coevolved, frozen = (evaluation_metrics(arm, seed, 2)["fd"]["value"] for arm in ("coevolved", "frozen"))
        assert found["fd"].values[seed] == pytest.approx(coevolved - frozen)
    order = [
        ("frozen", "original"),
        ("frozen", "affine"),
        ("frozen", "coevolved"),
        ("coevolved", "original"),
        ("coevolved", "affine"),
        ("coevolved", "coevolved"),
        ("real", "original"),
        ("real", "coevolved"),
    ]
    assert factorial_rows(results) == order
    effect = {item.metric.key: item for item in of_decoder(results, "frozen", "coevolved")}
    assert effect["fd"].values == pytest.approx({0: -0.05, 1: -0.10, 2: -0.15})
    forgotten = {item.metric.key: item for item in of_decoder(results, "real", "coevolved")}
    distance = results.reference["reconstruction"]["fd"]["value"]
    assert forgotten.keys() == {"fd", "fd_mid", "fd_patch", "l1"}
    assert forgotten["fd"].values == pytest.approx(dict.fromkeys(params.seeds, 0.3 - distance))
    assert forgotten["l1"].values == pytest.approx(dict.fromkeys(params.seeds, 0.29))
    earlier = {item.metric.key: item for item in of_decoder(results, "frozen", "coevolved", 1)}
    assert earlier["fd"].values == pytest.approx(effect["fd"].values) and earlier["fd"].name == effect["fd"].name


def test_a_supervised_start_is_round_0_and_is_compared_with(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0, 1], rounds=1, sft=True)
    results = load_results(params, tmp_path)
    start = {seed: evaluation_metrics("sft", seed, 0)["fd"]["value"] for seed in params.seeds}
    assert results.by_seed("frozen", 0, "fd") == results.by_seed("sft", 1, "fd") == start
    base = evaluation_metrics("base", 0, 0)["fd"]["value"]
    assert results.by_seed("base", 1, "fd") == dict.fromkeys(params.seeds, base)
    pairs = [("sft", "base"), ("frozen", "base"), ("coevolved", "base"), ("frozen", "sft"), ("coevolved", "sft")]
    assert against_start(results) == pairs
    found = {item.metric.key: item for item in between(results, "frozen", "sft", 1)}["fd"]
    last = {seed: evaluation_metrics("frozen", seed, 1)["fd"]["value"] for seed in start}
    assert found.values == {seed: pytest.approx(last[seed] - start[seed]) for seed in start}
    page = read_page(write_report(params, tmp_path))
    assert all(f"{name} − {other}" in page.words for name, other in pairs)
    assert all(f"s{seed} {found.metric.text(value, True)}" in page.words for seed, value in found.values.items())
    # By seed 4 prompts x (real, reconstruction, base, sft, then of one round 3); a row in front, the icon, the dialog
    assert len(page.loads) == 4 * 7 * 2 + 7 + 2
    numbers = json.loads((tmp_path / "report" / "results.json").read_text())
    assert numbers["sft"]["fd"] == {str(seed): value for seed, value in start.items()}
    assert numbers["against_sft"]["frozen"]["fd"]["mean"] == pytest.approx(found.mean)
    words = shown(results)
    assert re.search(r"base .*sft.*frozen.*coevolved", words) and all(f"{a} − {b}\n" in words for a, b in pairs)


def test_without_a_supervised_start_nothing_speaks_of_one(project: tuple[Path, Params]) -> None:
    folder, params = project
    results = load_results(params, folder)
    assert against_start(results) == [("frozen", "base"), ("coevolved", "base")]
    numbers = json.loads((write_report(params, folder).parent / "results.json").read_text())
    assert not [key for key in numbers if "sft" in key] and "sft" not in shown(results)
    page = read_page(folder / "report" / "index.html")
    assert "sft" not in page.words and "supervised" not in page.words


def test_other_metrics_give_other_columns_categories_and_images(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=1, world=PUBLISHED)
    page = read_page(write_report(params, tmp_path))
    for words in ("FID ↓", "gram ↓", "CLIP score ↑", "sharpness ↑", "GenEval ↑", "HPSv2 ↑", "CLIP score on parti ↑"):
        assert words in page.words
    assert "CLIP score against FID" in page.words and "GenEval by category" in page.words
    assert "single object" in page.words and "30.9 %" in page.words and "0.2196" in page.words
    assert "Accuracy" not in page.words and "✗" not in page.words
    # 4 prompts x (base, frozen, coevolved, its tokens through the original), 4 captions x (real, reconstruction), and
    # the first prompt in front
    addresses = [str(image["src"]) for image in page.images if "src" in image][:-1]
    assert len(addresses) == 4 * 4 + 4 * 2 + 4 and all(a.startswith("data:image/webp;base64,") for a in addresses)
    assert max(len(address) for address in addresses) < 20_000
    words = [image["alt"] for image in page.images]
    assert words.count("real: a photo, number 0") == 1 and f"real: {PROMPTS[0]}" not in words
    with Image.open(tmp_path / "report" / "images.png") as sheet:
        assert max(sheet.size) < 1000
    words = shown(load_results(params, tmp_path))
    assert "odd on parti ↑" in words and "FID ↓" in words


def test_without_distances_there_is_no_path_and_the_page_stands(tmp_path: Path) -> None:
    world = replace(SHAPES, described={key: item for key, item in SHAPES.described.items() if item[0] != "distance"})
    params = write_project(tmp_path, seeds=[0], rounds=1, world=world)
    page = read_page(write_report(params, tmp_path))
    assert page.open == [] and "down and right is better" not in page.words and "FD ↓" not in page.words
    assert not (tmp_path / "report" / "pareto.svg").exists()


def shown(results: Results) -> str:
    """What `rank-e compare` prints."""
    console = Console(width=240, file=io.StringIO(), record=True)
    print_results(results, console)
    return console.export_text()


def test_readings_alone_are_coloured(project: tuple[Path, Params]) -> None:
    folder, params = project
    console = Console(width=240, file=io.StringIO(), record=True, force_terminal=True)
    print_results(load_results(params, folder), console)
    lines = [line for line in console.export_text(styles=True).splitlines() if "\x1b[3" in line]
    assert lines and all(re.search(r"  \x1b\[3[12]m(better|worse)\x1b\[0m$", line) for line in lines)


def test_the_same_artifacts_give_the_same_bytes(project: tuple[Path, Params]) -> None:
    folder, params = project

    def written() -> dict[str, bytes]:
        report = write_report(params, folder).parent
        return {str(path.relative_to(report)): path.read_bytes() for path in report.rglob("*") if path.is_file()}

    first = written()
    assert first == written()
    kinds = {name for name in first if "/" not in name}, {name.split("/")[0] for name in first if "/" in name}
    assert kinds == ({"index.html", "results.json", "pareto.svg", "images.png"}, {"metrics", "plots"})
    numbers = json.loads(first["results.json"])
    entry = numbers["paired"]["coevolved - frozen"]["fd"]
    values = list(entry["seeds"].values())
    assert (entry["n"], entry["better"]) == (3, "lower")
    assert entry["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_prompts_cannot_break_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.helpers.fake_artifacts.PROMPTS", ('<script>"&', *PROMPTS[1:]))
    params = write_project(tmp_path, seeds=[0], rounds=1)
    text = write_report(params, tmp_path).read_text(encoding="utf-8")
    assert text.count("<script>") == 1 and "&lt;script&gt;" in text
    assert "cannot tell the arms apart" in text and "no interval <small>n = 1</small>" in text


def test_a_missing_artifact_stops_strict_readers_and_is_named_by_compare(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0, 1], rounds=1)
    path = artifact_path("evaluation", "coevolved", 1, 1)
    (tmp_path / path).rename(tmp_path / "away")
    with pytest.raises(ArtifactError, match=str(path)):
        load_results(params, tmp_path)
    results = load_results(params, tmp_path, partial=True)
    words = shown(results)
    assert f"1 artifacts are not written yet, first:\n  {path}\n" in words
    assert "n = 2 seeds" in words and "one seed" in words and "CLIP score ↑" in words


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    for low, high in ((2.05, 2.87), (-0.06, 0.05), (68, 73), (0.0012, 0.0013)):
        marks = ticks(low, high)
        assert 3 <= len(marks) <= 9 and low - 1e-9 <= marks[0] and marks[-1] <= high + 1e-9


def test_rounds_that_are_not_evaluated_leave_their_place_in_the_curves_open(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=3)
    shutil.rmtree(tmp_path / artifact_path("evaluation", "frozen", 0, 2))
    shutil.rmtree(tmp_path / artifact_path("evaluation", "coevolved", 0, 2))
    with pytest.raises(ArtifactError):
        load_results(params, tmp_path)
    results = load_results(params.model_copy(update={"evaluated": [1, 3]}), tmp_path)
    assert results.last == 3
    assert {cell[2] for cell in results.cells} == {1, 3}
    assert {cell[2] for cell in results.training} == {1, 2, 3}
    fd = next(metric for metric in results.metrics if metric.key == "fd")
    assert [x for x, _ in by_round(results, fd)[0].points] == [0, 1, 3]
