"""`dvc metrics` and `dvc plots` as their users see them: few numbers, a page that draws without a network."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rank_e.config import Params
from stages.report.data import load_results
from stages.report.writing import write_report
from tests.helpers.browser import CHROMIUM, measured
from tests.helpers.fake_artifacts import PUBLISHED, write_project
from tests.helpers.project import ROOT, dvc

KEYS = ["fd", "fd_mid", "fd_patch", "clip", "accuracy", "reward", "token_kl"]


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """Two seeds and rounds with their report, and of the project's dvc.yaml what DVC shows."""
    folder = tmp_path_factory.mktemp("viewed")
    params = write_project(folder, seeds=[0, 1], rounds=2)
    write_report(params, folder)
    text = (ROOT / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(text[text.index("\nmetrics:\n") :])
    dvc(folder, "init", "--no-scm", "--quiet")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    config = (ROOT / ".dvc/config").read_text()
    (folder / ".dvc/config").write_text(config.replace("[core]", "[core]\n    no_scm = true"))
    return folder, params


def test_metrics_are_the_headline_of_base_and_arms(viewed: tuple[Path, Params]) -> None:
    folder, params = viewed
    shown = json.loads(dvc(folder, "metrics", "show", "--json"))[""]["data"]
    rows = {Path(path).stem: entry["data"] for path, entry in shown.items()}
    assert rows.keys() == {"base", "frozen", "coevolved"} and all(sorted(row) == sorted(KEYS) for row in rows.values())
    results = load_results(params, folder)
    for arm in ("frozen", "coevolved"):
        values = [results.cells[arm, seed, 2]["fd"]["value"] for seed in (0, 1)]
        assert rows[arm]["fd"] == pytest.approx(sum(values) / 2, rel=1e-12)
    assert rows["base"]["fd"] == results.base["fd"]["value"]
    table = dvc(folder, "metrics", "show", "--precision", "4").splitlines()
    assert max(map(len, table)) <= 120 and len(table) == 4


def test_published_models_have_their_own_metrics(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=1, world=PUBLISHED, sft=True)
    folder = write_report(params, tmp_path).parent
    assert {path.stem for path in (folder / "metrics").iterdir()} == {"base", "sft", "frozen", "coevolved"}
    known = {"coco", "gram", "clip30k", "sharpness", "ge", "hps", "parti_clip", "parti_odd", "reward", "token_kl"}
    assert {path.stem for path in (folder / "plots").iterdir()} == known
    supervised = load_results(params, tmp_path).sft[0]["coco"]["value"]
    lines = (folder / "plots" / "coco.csv").read_text().splitlines()
    assert lines[:2] == ["round,arm,value", f"0,frozen,{supervised}"] and len(lines) == 5


def test_plots_are_drawn_without_a_network(viewed: tuple[Path, Params], tmp_path: Path) -> None:
    folder, _ = viewed
    dvc(folder, "plots", "show", "--out", str(tmp_path))
    page = tmp_path / "index.html"
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?https?:""", text)
    assert text.count("vegaEmbed('#") == len(KEYS)
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    script = """return [...page.querySelectorAll("svg")].map(svg => ({
      title: svg.querySelector("text").textContent,
      lines: [...svg.querySelectorAll("polyline")].map(line => line.getAttribute("points").split(" ").length),
      words: [...svg.querySelectorAll("text")].map(text => text.textContent).join(" "),
      inside: [...svg.querySelectorAll("circle")].every(dot => dot.cx.baseVal.value >= 56 && dot.cx.baseVal.value <= 410
        && dot.cy.baseVal.value >= 28 && dot.cy.baseVal.value <= 220),
    }))"""
    drawn, console = measured(page, tmp_path, script, width=900)
    assert console == [] and len(drawn) == len(KEYS)
    assert {Path(plot["title"]).stem for plot in drawn} == set(KEYS)
    assert all(plot["lines"] == [3, 3] and plot["inside"] for plot in drawn)  # rounds 0, 1, 2 of each arm
    assert all("frozen" in plot["words"] and "coevolved" in plot["words"] for plot in drawn)
