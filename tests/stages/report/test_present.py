"""A run that is there in part: its largest part that can stand side by side is shown, the rest is named."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from rank_e.config import Params, load
from stages.report.data import load_results
from stages.report.present import present
from stages.report.terminal import print_results
from stages.report.writing import write_report
from stages.runtime.artifacts import ArtifactError
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import write_project
from tests.helpers.page import read_page


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_project(folder, seeds=[0, 1], rounds=2)
    return folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> tuple[Path, Params]:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run", load(tmp_path / "run" / "params.yaml")


def remove(folder: Path, *cells: tuple[str, int, int], kind: str = "evaluation") -> list[str]:
    paths = [artifact_path(kind, *cell) for cell in cells]
    for path in paths:
        shutil.rmtree(folder / path)
    return [str(path) for path in paths]


def shape(params: Params) -> tuple[list[str], list[int], list[int], list[str]]:
    return list(params.arms), params.seeds, params.evaluated, params.factorial.arms


def test_a_whole_run_is_left_as_it_is(project: tuple[Path, Params]) -> None:
    folder, params = project
    assert present(params, folder) == (params, [])
    assert "A part of the run" not in write_report(params, folder).read_text(encoding="utf-8")


def test_an_arm_alone_is_a_report_of_one_arm_that_names_the_other(project: tuple[Path, Params]) -> None:
    folder, params = project
    for name in ("evaluation", "factorial"):
        remove(folder, *(("frozen", s, r) for s in (0, 1) for r in (1, 2)), kind=name)
    missing = remove(folder, *(("coevolved", s, r) for s in (0, 1) for r in (1, 2)), kind="factorial")
    part, absent = present(params, folder)
    assert shape(part) == (["coevolved"], [0, 1], [1, 2], ["coevolved"])
    assert len(absent) == 12 and set(missing) <= set(absent)
    page = read_page(write_report(params, folder))
    assert "A part of the run: coevolved; s0, s1; rounds 1 to 2." in page.words
    assert "12 artifacts are not here or not up to date, first: artifacts/frozen/s0/r1/evaluation" in page.words
    results = load_results(part, folder, missing=absent)
    assert results.arms == ["coevolved"] and results.pairs == [] and results.factorial == {}


def test_as_much_as_can_stand_side_by_side_is_shown(project: tuple[Path, Params]) -> None:
    folder, params = project
    (first,) = remove(folder, ("coevolved", 1, 2))
    part, absent = present(params, folder)
    # Two arms of one seed rather than one arm of two seeds.
    assert shape(part) == (["frozen", "coevolved"], [0], [1, 2], ["frozen", "coevolved"]) and absent == [first]
    remove(folder, ("coevolved", 0, 2))
    assert shape(present(params, folder)[0]) == (["frozen"], [0, 1], [1, 2], ["frozen"])
    remove(folder, ("frozen", 0, 2), ("frozen", 1, 2))  # no arm has come to the second round
    part, _ = present(params, folder)
    assert shape(part) == (["frozen", "coevolved"], [0, 1], [1], ["frozen", "coevolved"])
    assert [item.id for item in part.rounds] == [1] and part.last_round == part.factorial.round == 1


def test_what_is_not_up_to_date_counts_as_missing(project: tuple[Path, Params]) -> None:
    folder, params = project
    stale = [str(artifact_path("evaluation", "coevolved", 1, 2))]
    assert present(params, folder, stale)[1] == stale
    write_report(params, folder, stale=stale)
    text = (folder / "report/results.json").read_text()
    assert '"seeds": [\n    0\n  ]' in text and stale[0] in text


def test_a_factorial_that_is_missing_is_named_and_the_rest_shown(project: tuple[Path, Params]) -> None:
    folder, params = project
    missing = remove(folder, ("coevolved", 0, 2), kind="factorial")
    part, absent = present(params, folder)
    assert shape(part) == shape(params) and absent == missing
    assert missing[0] in write_report(params, folder).read_text(encoding="utf-8")


def test_what_every_page_needs_stops_the_report(project: tuple[Path, Params]) -> None:
    folder, params = project
    shutil.rmtree(folder / artifact_path("reference"))
    with pytest.raises(ArtifactError, match="artifacts/reference"):
        write_report(params, folder)
    shutil.rmtree(folder / "artifacts")
    with pytest.raises(ArtifactError):
        write_report(params, folder)
    assert not list(folder.glob("report*"))


def test_compare_shows_an_arm_alone(project: tuple[Path, Params]) -> None:
    folder, params = project
    for name in ("evaluation", "factorial"):
        remove(folder, *(("frozen", s, r) for s in (0, 1) for r in (1, 2)), kind=name)
    console = Console(record=True, width=200)
    print_results(load_results(params, folder, partial=True), console)
    words = console.export_text()
    assert "coevolved − base" in words and "8 artifacts are not written yet" in words
