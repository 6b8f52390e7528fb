"""Sizes: distances of different numbers of images are refused, and values that cannot be told are a dash."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rank_e.evaluation.diversity import diversity_metric
from rank_e.evaluation.matched import matched_metric
from rank_e.evaluation.metric import Metric
from stages.report.data import between, factorial_metrics, load_results, of_decoder
from stages.report.page import path_section
from stages.report.sizes import Size, SizeError, check_sizes, size_note, sizes
from stages.report.terminal import print_results
from stages.report.writing import write_report
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import SHAPES, write_project

FD = Metric("FD", "lower", "distance", decimals=2)
DESCRIBED = {
    **{key: SHAPES.described[key] for key in ("fd", "fd_mid", "fd_patch")},
    "fd_matched": ("distance", matched_metric(FD, "Accuracy")),
    **{key: SHAPES.described[key] for key in ("clip", "accuracy")},
    "diversity": ("score", diversity_metric(FD)),
    **{key: SHAPES.described[key] for key in ("reward", "token_kl", "token_entropy")},
}
LEVELS = {"fd_matched": (1.7, 0.1, -0.1), "diversity": (33.0, -2.0, -1.0)}
UNTOLD = replace(SHAPES, described=DESCRIBED)
"""Described, but in no artifact: as where too few images are right."""
TOLD = replace(UNTOLD, levels={key: (SHAPES.levels | LEVELS)[key] for key in DESCRIBED})


def changed(project: Path, path: Path, kind: str, change: Any) -> None:
    """The artifact written anew with other metrics."""
    artifact = read_artifact(project / path, kind)
    metrics, files = artifact.json("metrics"), sorted(set(artifact.manifest["files"]) - {"metrics.json"})
    kept = {name: (project / path / name).read_bytes() for name in files}
    with ArtifactWriter(project / path, kind, seed=0, deterministic=True) as out:
        for name, data in kept.items():
            out.file(name).write_bytes(data)
        out.json("metrics", change(metrics))


def resized(metrics: Any, key: str, **size: int) -> Any:
    """Every entry of one metric with another size."""
    if not isinstance(metrics, dict):
        return metrics
    return {
        name: entry | size if name == key and "value" in entry else resized(entry, key, **size)
        for name, entry in metrics.items()
    }


def test_sizes_are_found_however_deep_and_matched_distances_have_none() -> None:
    entry = {"value": 1.0, "images": 8, "real": 64}
    metrics = {"images": 8, "fd": entry, "original": {"fd": entry}, "clip": {"value": 2.0, "categories": {"a": entry}}}
    metrics["fd_matched"] = {"value": 1, "images": 5, "captions": 2}
    size = Size(8, 64)
    assert list(sizes(metrics)) == [("fd", size), ("fd", size), ("clip", None)]
    assert list(sizes({"frozen": {"affine": {"fd": entry}}})) == [("fd", size)]


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("baseline", ()),
        ("sft_evaluation", ("", 1)),
        ("evaluation", ("coevolved", 1, 1)),
        ("factorial", ("coevolved", 1, 1)),
    ],
)
@pytest.mark.parametrize("size", [{"images": 4}, {"real": 32}])
def test_a_run_of_two_sizes_is_refused_wherever_the_other_one_stands(
    tmp_path: Path, kind: str, cell: tuple[Any, ...], size: dict[str, int]
) -> None:
    params = write_project(tmp_path, seeds=[0, 1], rounds=1, sft=True, world=TOLD)
    load_results(params, tmp_path)
    path = artifact_path(kind, *cell)
    kind = kind if kind == "factorial" else "evaluation"
    changed(tmp_path, path, kind, lambda metrics: resized(metrics, "fd_mid", **size))
    words = str(Size(**{"images": 8, "real": 64, **size}))
    for partial in (False, True):
        with pytest.raises(SizeError) as refused:
            load_results(params, tmp_path, partial=partial)
        message = str(refused.value)
        assert str(path) in message and ": fd_mid is of " in message and words in message and "`dvc repro`" in message
        assert str(Size(8, 64)) in message and "\n" not in message and message.count("artifacts/") == 2
    with pytest.raises(SizeError):
        write_report(params, tmp_path)


def test_a_distance_without_a_size_is_refused() -> None:
    unsized = {"fd": {"value": 1.0}, "fd_matched": {"value": 1.0, "images": 5, "captions": 2}}
    check_sizes({"a": unsized}, ["fd_matched", "clip"])
    with pytest.raises(SizeError, match="a: fd does not say of how many images it is; run `dvc repro`"):
        check_sizes({"a": unsized}, ["fd"])


def test_matched_distances_may_be_of_other_numbers(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=1, world=TOLD)
    path = artifact_path("evaluation", "coevolved", 0, 1)
    changed(tmp_path, path, "evaluation", lambda metrics: resized(metrics, "fd_matched", images=70))
    results = load_results(params, tmp_path)
    found = {item.metric.key: item for item in between(results, "coevolved", "frozen", 1)}
    assert found.keys() == set(TOLD.levels) and found["diversity"].better == 0
    assert {metric.key for metric in factorial_metrics(results)} >= {"fd_matched", "diversity"}
    assert {item.metric.key for item in of_decoder(results, "frozen", "coevolved")} >= {"fd_matched", "diversity"}
    assert "against FD<" in path_section(results) and "matched" not in path_section(results)


def test_the_table_says_where_real_images_are_of_another_size(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=1)
    note = "Distances are of 8 images to 64 real ones, those of real images and reconstructions of 6 images to 64"
    assert note in write_report(params, tmp_path).read_text(encoding="utf-8")
    changed(tmp_path, artifact_path("reference"), "reference", lambda metrics: every(metrics, images=8))
    with pytest.raises(SizeError, match=r"artifacts/reference: fd is of 6 .* and of 8"):
        load_results(params, tmp_path)
    changed(tmp_path, artifact_path("factorial", "coevolved", 0, 1), "factorial", lambda found: every(found, images=8))
    assert "levels to look at" not in write_report(params, tmp_path).read_text(encoding="utf-8")
    assert size_note({}, {}) == ""


def every(metrics: Any, **size: int) -> Any:
    """Every sized entry with another size."""
    for key in ("fd", "fd_mid", "fd_patch"):
        metrics = resized(metrics, key, **size)
    return metrics


def test_what_cannot_be_told_is_a_dash_everywhere(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0], rounds=1, world=UNTOLD)
    page = write_report(params, tmp_path).read_text(encoding="utf-8")
    row = page.partition("FD, matched ↓<small>")[2].partition("</tr>")[0]
    assert row.count("–") == 5  # base, frozen, coevolved, real, reconstruction
    assert "FD, matched by round; lower is better" not in page and "no values yet" in page
    numbers = json.loads((tmp_path / "report" / "results.json").read_text())
    assert "fd_matched" not in numbers["base"] and "fd_matched" not in numbers["paired"]["coevolved - frozen"]
    assert numbers["arms"]["frozen"]["diversity"] == {}
    console = Console(width=240, file=io.StringIO(), record=True)
    print_results(load_results(params, tmp_path), console)
    line = next(line for line in console.export_text().splitlines() if "FD, matched" in line)
    assert line.count("–") == 3  # base and both arms
