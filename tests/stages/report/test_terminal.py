"""`rank-e compare`: 80 columns whatever the run, nothing cut, the verdict last; the same as JSON and CSV."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from scipy import stats

from pipeline import cli
from stages.report.comparisons import ONE_SEED, comparisons
from stages.report.data import Results, between, load_results
from stages.report.terminal import WIDTH, lines, table
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import PUBLISHED, SHAPES, World, write_project


@pytest.mark.parametrize(
    ("world", "seeds", "sft"),
    [(SHAPES, [0], False), (SHAPES, [0, 1, 2, 3, 4], True), (PUBLISHED, list(range(12)), False)],
)
def test_any_run_fits_80_columns_and_nothing_is_cut(tmp_path: Path, world: World, seeds: list[int], sft: bool) -> None:
    results = load_results(write_project(tmp_path, seeds, 1, world, sft), tmp_path)
    found = list(lines(results))
    assert max(map(len, found)) <= WIDTH == 80 and not any("…" in line or line != line.rstrip() for line in found)
    words = "\n".join(found)
    for comparison in comparisons(results):
        assert f"\n{comparison.title}\n" in words
        for item in comparison.items:
            metric = item.metric
            assert f"\n{metric.name} {metric.arrow} " in words
            assert all(metric.text(value, True) in words for value in (item.mean, *item.values.values()))
    for name in results.arms:
        for metric in results.metrics:
            assert all(metric.text(v) in words for v in results.by_seed(name, 1, metric.key).values())


def test_the_verdict_is_the_last_word_of_each_row_and_of_the_whole(tmp_path: Path) -> None:
    results = load_results(write_project(tmp_path, rounds=1), tmp_path)
    found = list(lines(results))
    said = set()
    for comparison in comparisons(results):
        begin = found.index(comparison.title)
        for item, line in zip(comparison.items, found[begin + 2 :], strict=False):
            cells = re.split("  +", line)
            assert cells[0] == f"{item.metric.name} {item.metric.arrow}" and cells[-1] == item.verdict
            assert cells[1] == item.metric.text(item.mean, True)
            assert cells[3] in (f"{item.p:.3f}", "<0.001")
            assert cells[4] == f"{'–' if item.metric.better == 'nearer' else item.better}/3"
            said.add(item.verdict)
    assert said >= {"better", "worse", "open"}
    last = found.index("Verdict after round 1 (n = 3 seeds)")
    verdicts = " ".join(line.strip() for line in found[last + 2 :])
    for comparison in comparisons(results):
        for item in comparison.items:
            said = verdicts.partition(f"{comparison.title}: ")[2]
            assert re.search(rf"{item.verdict}: [^;]*\b{re.escape(item.metric.name)}\b", said)


def test_one_seed_settles_nothing_and_what_is_missing_is_said_before_the_verdict(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=1)
    path = artifact_path("factorial", "coevolved", 0, 1)
    shutil.rmtree(tmp_path / path)
    found = list(lines(load_results(params, tmp_path, partial=True)))
    assert found[-1] == ONE_SEED and found[-2] == "Verdict after round 1 (n = 1 seed)"
    assert found[-5:-3] == ["1 artifacts are not written yet, first:", f"  {path}"]


def test_real_images_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    """Their distances are of another number of images."""
    found = list(lines(load_results(write_project(tmp_path, seeds=[0], rounds=1), tmp_path)))
    tokens = found.index("Tokens of / the same through the decoder of; means, n = 1 seed")
    images = found.index("Real images / through the decoder of; means, n = 1 seed")
    assert found[images - 1] == "" and tokens < images
    assert not any(line.startswith("real / ") for line in found[tokens:images])
    assert sum(line.startswith("real / ") for line in found[images:]) >= 2


def test_columns_that_do_not_fit_follow_below_with_the_names_again() -> None:
    rows = [("first", ["1" * 30, "2" * 30, "3" * 30]), ("b", ["4", "5", "6"])]
    assert list(table(["x", "y", "z"], rows)) == [
        f"       {'x':>30}  {'y':>30}",
        f"first  {'1' * 30}  {'2' * 30}",
        f"b      {'4':>30}  {'5':>30}",
        f"       {'z':>30}",
        f"first  {'3' * 30}",
        f"b      {'6':>30}",
    ]
    assert list(table(["x"], [("n" * 60, ["1" * 40])])) == [f"{'x':>40}", "n" * 60, "1" * 40]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    params = write_project(tmp_path, rounds=1)
    monkeypatch.chdir(tmp_path)
    return load_results(params, tmp_path)


def test_a_pipe_gets_80_columns_too(project: Results, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["compare"])
    assert capsys.readouterr().out.splitlines() == list(lines(project))


def test_json_is_what_the_report_writes(project: Results, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["report"])
    capsys.readouterr()
    cli.main(["compare", "--json"])
    text = capsys.readouterr().out
    assert text == Path("report/results.json").read_text(encoding="utf-8")
    entry = json.loads(text)["paired"]["coevolved - frozen"]["fd"]
    values = list(entry["seeds"].values())
    assert entry["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue) and entry["n"] == 3


def test_csv_has_a_row_for_each_level_and_each_difference(project: Results, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["compare", "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    count = sum(len(comparison.items) for comparison in comparisons(project))
    assert len(rows) == 3 * len(project.metrics) + count
    found = {(row["what"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)
    base, level = found["base", "accuracy"], found["frozen", "accuracy"]
    assert (base["n"], base["s0"], base["unit"], base["low"]) == ("1", "", "share", "")
    assert [float(level[f"s{s}"]) for s in range(3)] == list(project.by_seed("frozen", 1, "accuracy").values())
    item = next(i for i in between(project, "coevolved", "frozen", 1) if i.metric.key == "fd")
    row = found["coevolved − frozen", "fd"]
    assert [float(row[name]) for name in ("mean", "low", "high", "p")] == [item.mean, item.low, item.high, item.p]
    assert (row["n"], row["better"], row["reading"], float(row["s2"])) == ("3", "lower", item.verdict, item.values[2])


def test_json_and_csv_exclude_each_other(project: Results, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "--json", "--csv"])
    assert end.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_what_is_missing_is_said_beside_what_a_program_reads(
    project: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(artifact_path("factorial", "frozen", 0, 1))
    cli.main(["compare", "--csv"])
    output = capsys.readouterr()
    assert "not written" not in output.out
    assert output.err == f"1 artifacts are not written yet, first: {artifact_path('factorial', 'frozen', 0, 1)}\n"
