"""Seeded damage of a small finished run: no reader believes it, each says so in one line."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.repair import artifact_folders, repair
from rank_e.config import Params
from stages.report.data import load_results
from stages.report.images import makers_of
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import ArtifactError, read_artifact
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import write_project

ROUNDS, SEEDS = 2, [0, 1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path]:
    project = tmp_path_factory.mktemp("finished")
    return write_project(project, SEEDS, ROUNDS), project


@pytest.fixture
def project(finished: tuple[Params, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[1], tmp_path / "project"))


def kind_of(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["kind"])


def read_all(project: Path, kinds: dict[Path, str]) -> None:
    """Everything that any reader opens."""
    for folder, kind in kinds.items():
        read_artifact(project / folder, kind).verify()


def refused(read: Callable[[], Any], thing: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read()
    assert len(str(caught.value).splitlines()) == 1
    assert str(thing) in str(caught.value) and "run `" in str(caught.value)


def kinds_of(project: Path) -> dict[Path, str]:
    return {folder.relative_to(project): kind_of(folder) for folder in artifact_folders(project)}


def test_a_whole_run_is_read(project: Path, finished: tuple[Params, Path]) -> None:
    read_all(project, kinds_of(project))
    load_results(finished[0], project)
    makers_of(finished[0], project, 0, "accuracy")
    assert repair(project, project / ".dvc" / "cache")[0].endswith("all whole")


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_is_refused(project: Path, seed: int) -> None:
    kinds, draw = kinds_of(project), random.Random(seed)
    file = draw.choice(sorted(path for folder in kinds for path in (project / folder).iterdir()))
    status, data = file.stat(), bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    folder = file.parent.relative_to(project)
    refused(lambda: read_artifact(project / folder, kinds[folder]).verify(), folder)
    assert status.st_size == file.stat().st_size
    lines = repair(project, project / ".dvc" / "cache")
    assert lines[0].startswith(f"removed {folder}: ") and len(lines) == 2
    assert not (project / folder).exists()


def test_no_bit_of_a_manifest_may_change(project: Path) -> None:
    folder = artifact_path("ranking", "frozen", 0, 1)
    manifest = project / folder / "manifest.json"
    whole = manifest.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        manifest.write_bytes(data)
        refused(lambda: read_artifact(project / folder, "ranking"), folder)


@pytest.mark.parametrize("seed", range(20))
def test_a_file_of_another_artifact_is_refused(project: Path, seed: int) -> None:
    kinds, draw = kinds_of(project), random.Random(seed)
    files = sorted(path for folder in kinds for path in (project / folder).iterdir())
    file = draw.choice(files)
    others = [path for path in files if path.name == file.name and path.read_bytes() != file.read_bytes()]
    if not others:
        return
    shutil.copyfile(draw.choice(others), file)
    folder = file.parent.relative_to(project)
    refused(lambda: read_artifact(project / folder, kinds[folder]).verify(), folder)


@pytest.mark.parametrize("seed", range(20))
def test_an_artifact_of_another_cell_is_refused(project: Path, seed: int) -> None:
    kinds, draw = kinds_of(project), random.Random(seed)
    folder, given = draw.sample([folder for folder, kind in kinds.items() if kind == "evaluation"], 2)
    shutil.rmtree(project / folder)
    shutil.copytree(project / given, project / folder)
    refused(lambda: read_artifact(project / folder, "evaluation"), folder)


@pytest.mark.parametrize("kind", ["reference", "baseline", "evaluation", "ranking", "factorial"])
def test_an_edited_number_is_never_shown(project: Path, finished: tuple[Params, Path], kind: str) -> None:
    folder = artifact_path(kind, "coevolved", 1, 2)
    file = project / folder / "metrics.json"
    edited = (
        file.read_text().replace("0.", "0.9", 1) if "0." in file.read_text() else file.read_text().replace("1", "9")
    )
    file.write_text(edited)
    for partial in (False, True):
        refused(lambda partial=partial: load_results(finished[0], project, partial), folder)
    # Of the same size, with a time that says that nothing happened.
    shutil.copyfile(finished[1] / folder / "metrics.json", file)
    text = file.read_text()
    place = next(index for index, letter in enumerate(text) if letter.isdigit())
    file.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    for partial in (False, True):
        refused(lambda partial=partial: load_results(finished[0], project, partial), folder)


def test_an_artifact_of_other_inputs_is_refused(tmp_path: Path) -> None:
    def write(kind: str, round_id: int, value: int, inputs: dict[str, Path]) -> Path:
        path = tmp_path / artifact_path(kind, "frozen", 0, round_id)
        names = {name: given.relative_to(tmp_path) for name, given in inputs.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            with ArtifactWriter(path.relative_to(tmp_path), kind, seed=0, deterministic=True, inputs=names) as out:
                out.json("metrics", {"value": value})
        return path

    rollouts = write("rollouts", 1, 1, {})
    ranking = write("ranking", 1, 1, {"rollouts": rollouts})
    read_artifact(ranking, "ranking")
    write("rollouts", 1, 2, {})  # whole, of this very cell, and not what was ranked
    refused(lambda: read_artifact(ranking, "ranking"), ranking)
    read_artifact(ranking, "ranking", lineage=False)
    shutil.rmtree(rollouts)
    read_artifact(ranking, "ranking")
