"""The page as such: whole, alone, the claim first and the rest folded, images by round, curves, costs, params."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rank_e.config import Params
from stages.report.arms import differing
from stages.report.claim import BAR_WORDS
from stages.report.comparisons import comparisons
from stages.report.costs import cells, costs
from stages.report.curves import POINTS, update_logs
from stages.report.data import between, load_results
from stages.report.gallery import STOPS, galleries, stops
from stages.report.images import Maker, start_makers
from stages.report.page import render
from stages.report.script import SCRIPT
from stages.report.terminal import lines
from stages.report.writing import write_report
from stages.runtime.artifacts import ArtifactError, manifest_sha256
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import PROMPTS, log_table, write_project
from tests.helpers.page import Page, read_page


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    folder = tmp_path_factory.mktemp("run")
    return folder, write_project(folder)


@pytest.fixture(scope="module")
def text(project: tuple[Path, Params]) -> str:
    return write_report(project[1], project[0]).read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_stands_alone(text: str) -> None:
    page = Page(text)
    assert page.open == [] and len(set(page.ids)) == len(page.ids) and set(page.refers) <= set(page.ids)
    assert page.loads and all(address.startswith(("data:image/png;base64,", "data:,")) for address in page.loads)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert text.count("<script") == 1 and f"<script>{SCRIPT}</script>" in text
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert "default-src 'none'" in text and f"script-src 'sha256-{digest}'" in text
    assert all(image["alt"] or image["src"] == "data:," for image in page.images)


def test_the_first_screen_is_one_figure_one_table_and_one_row_and_the_rest_is_folded(
    text: str, project: tuple[Path, Params]
) -> None:
    folder, params = project
    first, _, rest = text.partition("</section>")
    opened = Page(first[first.index("<header") :] + "</section>")
    assert (first.count("<svg"), first.count("<table"), first.count('class="prompt"')) == (1, 1, 1)
    assert len(opened.images) == 6 and opened.images[0]["alt"] == f"real: {PROMPTS[0]}"
    assert "<details open" not in rest and rest.count("<details>") == rest.count("<summary>") == 8
    unfolded = re.sub(r"<details>.*?</details>|<dialog.*?</dialog>", "", rest, flags=re.DOTALL)
    assert not re.search(r"<(table|svg|img)", unfolded)
    results = load_results(params, folder)
    for item in between(results, "coevolved", "frozen", 2):
        assert item.metric.text(item.mean, True) in opened.words and item.verdict in opened.words
    assert opened.words.count("n\u00a0=\u00a03)") == 4  # the four columns that have intervals
    assert "coevolved − frozen: better" in opened.words or "coevolved − frozen: open" in opened.words
    assert "frozen tokens: affine control − original decoder" in opened.words
    assert BAR_WORDS["a"] in opened.words and BAR_WORDS["d"] not in opened.words  # its arms were not run


def test_one_chooser_holds_every_comparison_with_interval_n_and_p(text: str, project: tuple[Path, Params]) -> None:
    results = load_results(project[1], project[0])
    found, words = comparisons(results), Page(text).words
    titles = [comparison.title for comparison in found]
    assert titles[:3] == ["coevolved − frozen", "frozen − base", "coevolved − base"]
    assert titles[-1] == "coevolved decoder − affine control, on frozen tokens"
    gains = {item.metric.key: item.values for item in found[-1].items}
    assert gains["fd"] == pytest.approx({0: -0.04, 1: -0.09, 2: -0.14})
    assert text.count("<select") == 2 and all(f"<option>{title}</option>" in text for title in titles)
    assert text.count('<div class="panel"') == len(found) + len(results.seeds)
    assert text.count('<div class="panel">') == 2  # the first of each
    for item in found[0].items:
        for seed, value in item.values.items():
            assert f"s{seed} {item.metric.text(value, True)}" in words
    rows = re.findall(r'data-label="95 % interval"><div>(.*?)</div>', text)
    assert len(rows) == sum(len(comparison.items) for comparison in found)
    assert all(row.endswith("<small>n = 3</small>") for row in rows)
    assert text.count('data-label="p"') == len(rows)


def test_images_go_by_round_and_marks_stand_below_them(text: str, project: tuple[Path, Params]) -> None:
    _, params = project
    page = Page(text)
    # By seed 4 prompts x (real, reconstruction, base, then rounds 0, 1 and 2 of frozen, coevolved and its tokens)
    assert len(page.images) == 3 * 4 * (3 + 3 * 3) + 6 + 1
    assert text.count('<figure data-round="0" hidden>') == text.count('<figure data-round="1" hidden>') == 3 * 4 * 3
    assert text.count('<figure data-round="2">') == 3 * 4 * 3 and 'data-rounds="0 1 2"' in text
    begun = [image for image in page.images if "data-of" in image]
    assert len(begun) == 3 * 4 * 3 and not any("src" in image for image in begun)
    assert {str(image["data-of"]) for image in begun} == {f"s{s}-base-{i}" for s in params.seeds for i in range(4)}
    # Images 0 and 3 of base, frozen and coevolved are wrong: in front once, then by seed base once and two arms thrice.
    assert page.words.count("✗") == 1 + 3 + 3 * 2 * (1 + 2 * 3)
    assert "</button><figcaption" in text and not re.search(r"<button[^>]*><img[^>]*>[^<]*<(b|i)", text)
    assert 'alt="frozen: a red circle"' in text


def test_the_mark_of_round_0_is_that_of_the_start(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project

    def right(*given: Any) -> list[Maker]:
        return [replace(maker, correct=[True] * len(maker.images)) for maker in start_makers(*given)]

    monkeypatch.setattr("stages.report.gallery.start_makers", right)
    text = galleries(params, folder, load_results(params, folder))[0][1]
    figures = re.findall(r'<figure data-round="(\d)".*?</figure>', text)
    marks = re.findall(
        r'<figure data-round="(\d)"[^<]*<button.*?</button><figcaption[^>]*>(?:frozen|coevolved) <b[^>]*>(.)<', text
    )
    assert len(figures) == 4 * 3 * 3 and len(marks) == 4 * 2 * 3
    assert {mark for item, mark in marks if item == "0"} == {"✓"}
    assert {mark for item, mark in marks if item == "1"} == {"✓", "✗"}


def test_the_rounds_that_are_shown_are_few_and_even(project: tuple[Path, Params]) -> None:
    _, params = project
    assert stops(params) == [1, 2]
    many = params.model_copy(update={"evaluated": list(range(1, 61))})
    shown = stops(many)
    assert len(shown) == STOPS and shown[-1] == 60
    assert {later - earlier for earlier, later in pairwise([0, *shown])} <= {7, 8}
    assert stops(params.model_copy(update={"evaluated": [5]})) == [5]


def test_training_curves_are_the_logs(project: tuple[Path, Params]) -> None:
    folder, params = project
    logs, absent = update_logs(params, folder)
    assert absent == []
    keys = {"policy": ("loss", "kl", "reward"), "decoder": ("gan", "reconstruction")}
    assert set(logs) == {(stage, key) for stage, found in keys.items() for key in found}
    assert {line.name for line in logs["decoder", "gan"]} == {"coevolved"}  # the other trains none
    table = pd.concat([log_table(item, 8, ("loss", "kl", "reward")) for item in (1, 2)])
    line = next(line for line in logs["policy", "kl"] if line.label == "frozen s1")
    np.testing.assert_allclose(line.points, table[["step", "kl"]])
    strong = [line for line in logs["policy", "kl"] if line.strong]
    assert [line.label for line in strong] == ["frozen, mean", "coevolved, mean"]
    np.testing.assert_allclose(strong[0].points, line.points)  # all seeds have the same log here


def test_a_log_that_is_gone_leaves_a_gap_that_is_named_and_a_damaged_one_stops_the_report(
    project: tuple[Path, Params], tmp_path: Path
) -> None:
    _, params = project
    folder = shutil.copytree(project[0], tmp_path / "gone")
    gone = artifact_path("policy", "frozen", 0, 1)
    shutil.rmtree(folder / gone)
    logs, absent = update_logs(params, folder)
    assert absent == [str(gone)]
    line = next(line for line in logs["policy", "kl"] if line.label == "frozen s0")
    assert [x for x, _ in line.points] == list(range(8, 16))
    average = next(line for line in logs["policy", "kl"] if line.label == "frozen, mean")
    assert [x for x, _ in average.points] == list(range(8, 16))  # of the steps that every seed has
    words = read_page(write_report(params, folder)).words
    assert f"1 of the rounds' artifacts are not here any more, first: {gone}" in words
    (folder / artifact_path("policy", "frozen", 1, 1) / "log.parquet").write_bytes(b"x")
    with pytest.raises(ArtifactError):
        write_report(params, folder)


def test_long_logs_are_shown_by_means_of_equal_parts(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    monkeypatch.setattr("stages.report.curves.POINTS", 5)
    line = update_logs(params, folder)[0]["policy", "loss"][0]
    assert POINTS == 100 and len(line.points) == 4
    table = pd.concat([log_table(item, 8, ("loss",)) for item in (1, 2)])
    assert [y for _, y in line.points] == pytest.approx(np.asarray(table["loss"]).reshape(4, 4).mean(1))
    assert [x for x, _ in line.points] == [1.5, 5.5, 9.5, 13.5]


KEPT = ("policy", "decoder", "reference")
"""Stages whose artifacts a fake run has."""


def test_costs_are_what_was_written_down(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0, 1], rounds=2)
    assert "Costs" not in read_page(write_report(params, tmp_path)).words
    names = [stage.key for stage in cells(params)]
    # reference, baseline; 2 seeds x (sft, its evaluation, 2 prompts); by arm and seed start and 2 rounds of 6 stages
    assert len(set(names)) == len(names) == 2 + 2 * 4 + 4 * (1 + 2 * 6)
    assert len({stage.made for stage in cells(params)}) == len(names)
    assert {"factorial-coevolved-s1-r2", "prompts-s0-r1", "reference", "start-frozen-s0"} <= set(names)
    usage = tmp_path / ".rank-e" / "usage"
    usage.mkdir(parents=True)
    made = {stage.key: manifest_sha256(tmp_path / stage.made) for stage in cells(params) if stage.name in KEPT}
    written: dict[str, dict[str, Any]] = {
        "policy-frozen-s0-r1": {"seconds": 1000.0, "peak_gpu_mb": 1.0},
        "policy-frozen-s1-r1": {"seconds": 2600.0, "peak_gpu_mb": 1.0},
        "decoder-coevolved-s0-r1": {"seconds": 40.25},
        "decoder-coevolved-s0-r2": {"seconds": 66666.0, "artifact": made["decoder-coevolved-s0-r1"]},  # another's
        "decoder-coevolved-s1-r2": {"seconds": 55555.0, "phases": {}},
        "reference": {"seconds": 12.5, "phases": {"wait": 3.0}},
        "report": {"seconds": 77777.0},
        "policy-frozen-s7-r1": {"seconds": 88888.0},
    }

    def write(name: str, value: dict[str, Any]) -> None:
        usual = {"peak_rss_mb": 1.0, "artifact": made.get(name, ""), "phases": {"wait": 0.0}}
        (usage / f"{name}.json").write_text(json.dumps(usual | value))

    for name, value in written.items():
        write(name, value)
    (usage / "baseline.json").write_text('{"secon')  # a kill cut it off
    found, count = costs(params, tmp_path)
    assert (len(found), count) == (4, len(names)) and sum(cost.seconds for cost in found) == 3649.75
    text = write_report(params, tmp_path).read_text(encoding="utf-8")
    words = Page(text).words
    assert f"Of 4 of {count} stages" in words and "77,777" not in words and "88,888" not in words
    assert re.search(r"policy</th><td[^>]*><div>–</div></td><td[^>]*><div>3,600.0<small>2 ×", text)
    row = text.partition("GPU-hours</th>")[2].partition("</tr>")[0]
    assert re.findall(r"<div>(.*?)</div>", row) == ["0.00", "1.00", "0.00", "1.00"]
    for name in ("policy-frozen-s0-r1", "policy-frozen-s1-r1"):
        write(name, {"seconds": 1.0})
    assert "GPU-hours" not in write_report(params, tmp_path).read_text(encoding="utf-8")


def test_the_params_that_differ_are_those_of_the_arms(project: tuple[Path, Params]) -> None:
    _, params = project
    assert differing(params) == {"decoder.train": ["false", "true"]}
    whole = params.model_dump(by_alias=True)
    third = {"rollouts": {"guidance": 3.5}, "ranking": {}, "policy": {}, "decoder": {"train": False}}
    arms = Params.model_validate(whole | {"arms": {**whole["arms"], "third": third}})
    assert differing(arms) == {"rollouts.guidance": ["2.0", "2.0", "3.5"], "decoder.train": ["false", "true", "false"]}


def test_one_arm_alone_has_a_page(project: tuple[Path, Params], tmp_path: Path) -> None:
    folder, params = project
    alone = params.factorial.model_copy(update={"arms": ["frozen"]})
    params = params.model_copy(update={"arms": {"frozen": params.arms["frozen"]}, "factorial": alone})
    results = load_results(params, folder)
    text = render(params, folder, results)
    page = Page(text)
    assert page.open == [] and "coevolved" not in page.words and "frozen − base: " in page.words
    assert not any("coevolved" in line for line in lines(results))
    assert "Nothing: all arms are told the same." in page.words
