"""Rot in DVC's cache: repair finds it, and the next run makes again what was lost, in the same bytes."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline import cli
from pipeline import repair as module
from pipeline.board import Board
from pipeline.cache_objects import holds
from pipeline.dvc import StageError
from pipeline.flow import RUN, Run, run_node
from pipeline.graph import Node
from pipeline.plan import Plan
from pipeline.repair import DISTRUST, artifact_folders, cache_folder, distrust, repair
from pipeline.run_page import Progress
from rank_e.errors import RankEError
from stages.runtime.artifacts import REPAIR, ArtifactError
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import write_project as write_finished
from tests.helpers.project import ROOT, dvc

MAKE = """
import sys
from pathlib import Path
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import read_artifact

def make(kind, value, inputs):
    path = f"artifacts/frozen/s0/r1/{kind}"
    with ArtifactWriter(path, kind, seed=0, deterministic=True, inputs=inputs) as out:
        out.json("metrics", {"value": value})

if sys.argv[1] == "rollouts":
    make("rollouts", 0.25, {})
else:
    rollouts = read_artifact("artifacts/frozen/s0/r1/rollouts", "rollouts")
    make("ranking", rollouts.json("metrics")["value"] * 2, {"rollouts": rollouts.path})
"""
PIPELINE = """
stages:
  rollouts:
    cmd: python make.py rollouts
    deps: [make.py]
    outs: [artifacts/frozen/s0/r1/rollouts]
  ranking:
    cmd: python make.py ranking
    deps: [make.py, artifacts/frozen/s0/r1/rollouts]
    outs: [artifacts/frozen/s0/r1/ranking]
"""


def contents(project: Path) -> dict[str, bytes]:
    return {str(path.relative_to(project)): path.read_bytes() for path in (project / "artifacts").rglob("*.json")}


def rot(file: Path) -> None:
    """One bit flips, as disks do it: neither size nor time tells."""
    status, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("made")
    (project / "make.py").write_text(MAKE)
    (project / "dvc.yaml").write_text(PIPELINE)
    for name in ("stages", "rank_e", "pipeline"):
        (project / name).symlink_to(ROOT / name)
    dvc(project, "init", "--no-scm", "--quiet")
    shutil.copy(ROOT / ".dvc/config", project / ".dvc/config")
    dvc(project, "config", "core.no_scm", "true")
    dvc(project, "repro", "--quiet")
    return project


@pytest.fixture
def cache(made: Path) -> Path:
    return cache_folder(made)


def test_artifacts_and_cache_share_their_bytes(made: Path, cache: Path) -> None:
    held = {path.stat().st_ino for path in cache.rglob("*")}
    assert all(path.stat().st_ino in held for folder in artifact_folders(made) for path in folder.iterdir())


def test_a_whole_project_is_left_alone(made: Path, cache: Path) -> None:
    before = contents(made)
    (made / "artifacts/frozen/s0/r1/.policy.tmp-new").mkdir()  # a stage is writing
    (made / "artifacts/frozen/s0/r1/notes").mkdir()  # the user's own
    lines = repair(made, cache)
    assert len(lines) == 1 and lines[0].startswith("2 artifacts and ") and lines[0].endswith("all whole")
    assert contents(made) == before and len(list((made / "artifacts/frozen/s0/r1").iterdir())) == 4
    for name in (".policy.tmp-new", "notes"):
        (made / "artifacts/frozen/s0/r1" / name).rmdir()


def test_a_folder_without_a_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(RankEError, match=f"^{tmp_path}: .*; run in the project's folder, a clone made with git$"):
        cache_folder(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("{{{")
    with pytest.raises(RankEError, match=r"Invalid line .*; correct \.dvc/config$"):
        cache_folder(tmp_path)


@pytest.mark.parametrize("kind", ["rollouts", "ranking"])
def test_rot_is_dropped_and_made_again(made: Path, cache: Path, kind: str) -> None:
    before = contents(made)
    file = made / "artifacts/frozen/s0/r1" / kind / "metrics.json"
    rot(file)
    assert "didn't change" in dvc(made, "repro")  # DVC believes it
    lines = repair(made, cache)
    assert lines[0] == f"removed {file.parent.relative_to(made)}: {file} is not what was written"
    assert "damaged in DVC's cache" in lines[1] and lines[2].endswith("2 removed: `dvc repro` makes them again")
    dvc(made, "repro")
    assert contents(made) == before
    assert repair(made, cache)[-1].endswith("all whole")


def test_rot_of_what_is_in_the_cache_alone_is_never_restored(made: Path, cache: Path) -> None:
    before = contents(made)
    shutil.rmtree(made / "artifacts")
    objects = [path for path in cache.rglob("files/md5/*/*") if path.read_bytes() in before.values()]
    assert objects
    for path in objects:
        rot(path)
    lines = repair(made, cache)
    assert lines[-1].endswith(f"{len(objects)} removed: `dvc repro` makes them again")
    dvc(made, "repro")
    assert contents(made) == before


def object_of(file: Path, cache: Path) -> Path:
    """A file's object in the cache; the file is a link to it, or a copy after a stage has run again."""
    (found,) = (path for path in (cache / "files/md5").glob("*/*") if path.read_bytes() == file.read_bytes())
    return found


@pytest.mark.parametrize("damaged", ["file", "listing", "swapped", "gone", "none"])
def test_dvc_restores_nothing_that_rotted(made: Path, cache: Path, damaged: str) -> None:
    before, folder = contents(made), made / "artifacts/frozen/s0/r1/ranking"
    file = folder / "metrics.json"
    files = [path for path in (cache / "files/md5").glob("*/*") if path.suffix != ".dir"]
    rotten = object_of(file, cache)
    listed = f'"md5": "{rotten.parent.name}{rotten.name}"'
    (listing,) = (path for path in (cache / "files/md5").glob("*/*.dir") if listed in path.read_text())
    shutil.rmtree(folder)
    if damaged == "swapped":  # whole, but another's
        other = next(path for path in files if path != rotten)
        rotten.unlink()
        rotten.hardlink_to(other)
    elif damaged == "gone":
        rotten.unlink()
    elif damaged != "none":
        rot({"file": rotten, "listing": listing}[damaged])
    said = dvc(made, "repro", ran_by="pipeline.dvc_restore")
    whole = damaged in ("gone", "none")
    removed = [line.split("removed ")[1] for line in said.splitlines() if "damaged in DVC's cache" in line]
    place = listing if damaged == "listing" else rotten
    assert removed == ([] if whole else [f"{place}: damaged in DVC's cache"])
    assert ("Running stage 'ranking'" in said) is (damaged != "none") and "Running stage 'rollouts'" not in said
    assert contents(made) == before and repair(made, cache)[-1].endswith("all whole")


def test_an_artifact_of_which_a_part_is_gone_is_not_made_whole_from_rot(made: Path, cache: Path) -> None:
    before, folder = contents(made), made / "artifacts/frozen/s0/r1/ranking"
    rot(object_of(folder / "metrics.json", cache))
    (folder / "manifest.json").unlink()
    assert "Running stage 'ranking'" in dvc(made, "repro", ran_by="pipeline.dvc_restore")
    assert contents(made) == before and repair(made, cache)[-1].endswith("all whole")


def test_dvc_restores_no_artifact_of_another_cell(made: Path, cache: Path) -> None:
    before, lock = contents(made), made / "dvc.lock"
    text = lock.read_text()
    one, other = (yaml.safe_load(text)["stages"][name]["outs"][0]["md5"] for name in ("ranking", "rollouts"))
    lock.write_text(text.replace(one, other))  # as a merge may do it
    shutil.rmtree(made / "artifacts/frozen/s0/r1/ranking")
    said = dvc(made, "repro", ran_by="pipeline.dvc_restore")
    assert "dvc.lock has another artifact for artifacts/frozen/s0/r1/ranking: it is made anew" in said
    assert contents(made) == before and lock.read_text() == text


def test_a_run_reads_everything_after_damage_alone(made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(module, "holds", lambda path: read.append(path) or holds(path))
    assert repair(made, cache, beginning=True) == [] and not read
    distrust(made)
    objects = sorted((cache / "files/md5").glob("*/*"))
    said = f"2 artifacts and {len(objects)} objects of DVC's cache checked, all whole"
    assert repair(made, cache, beginning=True)[-1] == said and sorted(read) == objects
    read.clear()
    assert repair(made, cache, beginning=True) == [] and not read


def test_a_stage_that_meets_damage_has_the_next_run_read_everything(
    made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        project = made
        said = "out of memory"

        def run(self, *_: object) -> None:
            raise StageError(self.said)

    monkeypatch.setattr("pipeline.flow.get_run_logger", lambda: logging.getLogger())
    repair(made, cache)
    repro = Failing()
    RUN.set(Run(made, Board([], 1, lambda: False), Progress(made, [], 1), 0, set()))
    for repro.said, told in (("out of memory", False), (f"artifacts/x is not what was written: {REPAIR}", True)):
        with pytest.raises(StageError):
            run_node.fn(repro, Node("policy", "policy", None, None, None, (), ()))
        assert (made / DISTRUST).exists() is told


def test_a_file_without_a_manifest_is_read_by_every_run(made: Path, cache: Path) -> None:
    repair(made, cache)
    code = made / "artifacts/code"
    code.mkdir()
    objects = [path for path in (cache / "files/md5").glob("*/*") if path.suffix != ".dir"]
    (code / "policy.json").hardlink_to(objects[0])
    rot(code / "policy.json")
    lines = repair(made, cache, beginning=True)
    assert "removed artifacts/code/policy.json: its object in DVC's cache is damaged" in lines
    assert not (code / "policy.json").exists()
    code.rmdir()
    dvc(made, "repro")


def test_after_damage_that_the_last_table_meets_the_next_run_reads_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_finished(tmp_path, seeds=[0], rounds=1)
    (tmp_path / ".dvc").mkdir()  # a run's lock looks at DVC's
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    metrics = tmp_path / artifact_path("evaluation", "frozen", 0, 1) / "metrics.json"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(cli, "do_validate", lambda _: None)
    monkeypatch.setattr("pipeline.running.repair", lambda *_, **__: [])
    monkeypatch.setattr("pipeline.running.make_plan", lambda *_: Plan([], [], [], [], False))
    given = cli.parser().parse_args(["run", "--no-track"])
    cli.do_run(given)
    assert not (tmp_path / DISTRUST).exists()
    metrics.write_text(metrics.read_text().replace("1", "2", 1))
    with pytest.raises(ArtifactError, match="is not what was written"):
        cli.do_run(given)
    assert (tmp_path / DISTRUST).exists()
