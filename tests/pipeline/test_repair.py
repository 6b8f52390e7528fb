"""Rot in DVC's cache: repair finds it, and the next run makes again what was lost, in the same bytes."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.repair import artifact_folders, cache_folder, repair
from rank_e.errors import RankEError
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
