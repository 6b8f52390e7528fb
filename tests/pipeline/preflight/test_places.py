"""What DVC or a stage would trip over in folders is named before a run begins."""

import os
from pathlib import Path

import pytest

from pipeline.preflight.places import odd_places
from rank_e.config import Params
from rank_e.config.profiles import load_profile

ROOT = Path(__file__).parents[3]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets/shapes/inner").mkdir(parents=True)
    (tmp_path / "assets/shapes/file").write_text("x")
    (tmp_path / "assets/shapes/link").symlink_to("file")
    (tmp_path / "rank_e/shapes").mkdir(parents=True)
    return load_profile(ROOT / "profiles/shapes.yaml")


def test_folders_with_files_folders_and_links_to_them_are_fine(params: Params, tmp_path: Path) -> None:
    assert odd_places(params) == []
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "artifacts").symlink_to("elsewhere")  # DVC writes through it
    assert odd_places(params) == []


def test_pipes_dangling_links_and_names_that_are_not_utf8_are_named(params: Params) -> None:
    os.mkfifo("assets/shapes/inner/pipe")
    os.symlink("nowhere", "rank_e/shapes/dangling")
    os.symlink("round", "rank_e/shapes/round")
    Path(os.fsdecode(b"rank_e/shapes/caf\xe9.jpg")).write_text("x")
    found = odd_places(params)
    assert all(line.isprintable() and line.encode() for line in found)
    assert [line.partition("; ")[0] for line in found] == [
        "backbone.base: assets/shapes/inner/pipe is neither a file nor a folder, reading it may never end",
        "data.training.folder: the name of 'rank_e/shapes/caf\\udce9.jpg' is not UTF-8",
        "data.training.folder: rank_e/shapes/dangling is a link to nowhere, which cannot be opened",
        "data.training.folder: rank_e/shapes/round is a link to round, which cannot be opened",
    ]


def test_of_many_the_first_are_named_and_the_others_counted(params: Params) -> None:
    for number in range(12):
        os.symlink("nowhere", f"rank_e/shapes/{number:02d}")
    assert len(found := odd_places(params)) == 6 and found[-1].endswith("rank_e/shapes holds 7 more such entries")


def test_places_that_a_run_cannot_write_are_named(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("artifacts").symlink_to("gone")
    Path("report").write_text("x")
    assert [line.partition(";")[0] for line in odd_places(params)] == [
        "artifacts is a link to gone, which does not exist",
        "report is no folder",
    ]
    Path("artifacts").unlink()
    Path("report").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    assert all("cannot be written to" in line for line in odd_places(params))
