"""Rot in DVC's cache: repair finds it, and the next run makes again what was lost, in the same bytes."""

import logging
import os
import shutil
from pathlib import Path

import pytest

from pipeline import cli
from pipeline import repair as module
from pipeline.board import Board
from pipeline.dvc import StageError
from pipeline.flow import RUN, Run, run_node
from pipeline.graph import Node
from pipeline.plan import Plan
from pipeline.repair import KNOWN, artifact_folders, cache_folder, distrust, repair
from pipeline.run_page import Progress
from rank_e.errors import RankEError
from stages.runtime.artifacts import REPAIR, ArtifactError
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import write_project as write_finished
from tests.helpers.project import ROOT, dvc

MAKE = """
import sys
from pathlib import Path
from stages.runtime.artifacts import ArtifactWriter, read_artifact

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
    for name in ("stages", "rank_e"):
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
    with pytest.raises(RankEError, match=f"^{tmp_path}: .*; run it in a project's folder$"):
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


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The objects that are read, as they are."""
    found: list[Path] = []
    holds = module._holds
    monkeypatch.setattr(module, "_holds", lambda path: found.append(path) or holds(path))
    return found


def test_a_run_reads_what_it_may_restore_once(made: Path, cache: Path, read: list[Path]) -> None:
    objects = sorted(path for path in (cache / "files/md5").glob("*/*"))
    listings = [path for path in objects if path.suffix == ".dir"]
    distrust(made)
    assert (
        repair(made, cache, beginning=True)[-1]
        == f"2 artifacts and {len(objects)} objects of DVC's cache checked, all whole"
    )
    assert sorted(read) == objects
    (made / KNOWN).write_text("{}")  # damaged: it says nothing
    read.clear()
    repair(made, cache, beginning=True)
    assert sorted(read) == objects
    read.clear()
    assert repair(made, cache, beginning=True)[-1] == "0 objects of DVC's cache checked, all whole"
    module.write_json({}, made / KNOWN)  # all have come since
    repair(made, cache, beginning=True)
    assert sorted(read) == listings != objects  # artifacts are links to the others: their readers look
    before = contents(made)
    shutil.rmtree(made / "artifacts/frozen/s0/r1/ranking")
    read.clear()
    repair(made, cache, beginning=True)
    assert len(read) == 2  # its file and its manifest
    read.clear()
    os.utime(objects[0])
    shutil.rmtree(made / "artifacts")
    repair(made, cache, beginning=True)
    assert objects[0] in read
    read.clear()
    assert repair(made, cache, beginning=True)[-1].startswith("0 objects") and not read
    dvc(made, "repro")
    assert contents(made) == before


def test_what_rots_before_it_is_restored_is_dropped_or_refused(made: Path, cache: Path) -> None:
    before = contents(made)
    repair(made, cache)
    file = made / "artifacts/frozen/s0/r1/ranking/metrics.json"
    (rotten,) = (path for path in cache.rglob("files/md5/*/*") if path.samefile(file))
    rot(file)
    shutil.rmtree(file.parent)
    assert repair(made, cache, beginning=True)[-1].endswith(
        "0 objects of DVC's cache checked, all whole"
    )  # known, and no time tells
    distrust(made)
    assert repair(made, cache, beginning=True)[0] == f"removed {rotten}: damaged in DVC's cache"
    dvc(made, "repro")
    assert contents(made) == before


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
    for repro.said, kept in (("out of memory", True), (f"artifacts/x is not what was written: {REPAIR}", False)):
        with pytest.raises(StageError):
            run_node.fn(repro, Node("policy", "policy", None, None, None, (), ()))
        assert (made / KNOWN).exists() is kept


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
    known = tmp_path / KNOWN
    known.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(cli, "do_validate", lambda _: None)
    monkeypatch.setattr("pipeline.running.repair", lambda *_, **__: [])
    monkeypatch.setattr("pipeline.running.make_plan", lambda *_: Plan([], [], [], [], False))
    given = cli.parser().parse_args(["run", "--no-track"])
    known.write_text("{}")
    cli.do_run(given)
    assert known.exists()
    metrics.write_text(metrics.read_text().replace("1", "2", 1))
    with pytest.raises(ArtifactError, match="is not what was written"):
        cli.do_run(given)
    assert not known.exists()
