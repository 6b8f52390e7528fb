"""`rank-e gc`: what is not kept goes from workspace, cache and remote; the next round has the same bytes without it."""

import shutil
from pathlib import Path

import pytest

from pipeline.collecting import collect
from pipeline.retention import DROPPED, Keep, read_keep
from rank_e.config import load
from rank_e.errors import RankEError
from stages.runtime.artifacts import RemovedError, read_artifact
from tests.helpers.project import dvc
from tests.helpers.rounds_project import set_rounds, write_rounds_project


def gc(project: Path, monkeypatch: pytest.MonkeyPatch, keep: str = "last", *, really: bool = True) -> list[str]:
    monkeypatch.chdir(project)
    return list(collect(project, load(), read_keep(keep), DROPPED, None, really=really))


def files(project: Path) -> dict[str, bytes]:
    folder = project / "artifacts"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ran(project: Path) -> list[str]:
    """What stages ran since the last look."""
    path = project / "ran"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(lines)


def objects(place: Path) -> set[bytes]:
    return {path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds, of which the last two are evaluated."""
    folder = tmp_path_factory.mktemp("made") / "a"
    folder.mkdir()
    write_rounds_project(folder, 3, [2, 3])
    dvc(folder, "repro", "--quiet")
    (folder / "ran").unlink()
    return folder


@pytest.fixture(scope="module")
def freed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The same, handed over to a remote, then without what `--keep last` leaves out; and what was said."""
    folder = tmp_path_factory.mktemp("freed")
    project = Path(shutil.copytree(made, folder / "a", symlinks=True))
    dvc(project, "remote", "add", "-d", "store", str(folder / "store"), "--quiet")
    dvc(project, "push", "--run-cache", "--quiet")
    assert set(files(made).values()) <= objects(folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        planned = gc(project, patch, really=False)
        assert planned[-1] == "nothing was removed: --yes does it" and files(project) == files(made)
        return project, gc(project, patch)


@pytest.fixture
def project(freed: tuple[Path, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(freed[0], tmp_path / "a", symlinks=True))


def test_what_is_not_kept_goes_everywhere_and_nothing_else(made: Path, freed: tuple[Path, list[str]]) -> None:
    before, now = files(made), files(freed[0])
    # Round 2 is evaluated: its EMA weights stay.
    dropped = [(1, "ema"), *((number, name) for number in (1, 2) for name in ("optimizer", "online"))]
    gone = {
        f"coevolved/s0/r{number}/{kind}/{name}.safetensors"
        for number, name in dropped
        for kind in ("policy", "decoder")
    }
    assert before.keys() - now.keys() == gone
    assert all(now[name] == before[name] for name in before.keys() & now.keys())
    lost, kept = ({before[name] for name in names} for names in (gone, before.keys() - gone))
    assert len(lost) == len(gone)
    for place in (freed[0] / ".dvc/cache", freed[0].parent / "store"):
        assert not lost & objects(place) and kept <= objects(place)
    size = f"{sum(map(len, lost)) / 1e6:,.1f} MB"
    assert freed[1][0] == "kept whole of coevolved s0: rounds 0, 3"
    assert freed[1][1] == "optimizer: 0.0 MB in 4 files of rounds 1-2"
    assert freed[1][-1] == f"freed {size} in workspace and cache, {size} in remote store"


def test_a_round_that_lost_files_is_not_said_to_be_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = gc(project, monkeypatch, "last,every=1", really=False)
    assert said[0] == "kept whole of coevolved s0: rounds 0, 3; what is left of 1-2, freed before"


def test_a_remote_that_is_not_there_is_not_an_empty_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = project.parent / "unmounted"
    dvc(project, "remote", "modify", "store", "url", str(store), "--quiet")
    said = gc(project, monkeypatch, really=False)
    assert said[0] == f"remote store: nothing is at {store}, nothing there is freed" and said[-1] == "nothing to free"
    with pytest.raises(RankEError, match=rf"^remote store: nothing is at {store}: mount it"):
        list(collect(project, load(), read_keep("last"), DROPPED, "store", really=True))
    assert not store.exists()


def test_nothing_is_left_to_do_and_the_next_round_has_the_same_bytes(
    made: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "up to date" in dvc(project, "status")
    assert gc(project, monkeypatch)[-1] == "nothing to free"
    whole = Path(shutil.copytree(made, tmp_path / "whole", symlinks=True))
    found = []
    for folder in (project, whole):
        set_rounds(folder, 4, [2, 3, 4])
        dvc(folder, "repro", "--quiet")
        assert ran(folder) == [f"{kind} 4" for kind in ("decoder", "evaluation", "policy", "rollouts")]
        found.append({name: data for name, data in files(folder).items() if "/r4/" in name})
    assert found[0] == found[1] != {}


def test_a_kept_round_is_restored_and_a_removed_one_made_again_alone(made: Path, project: Path) -> None:
    shutil.rmtree(project / "artifacts/coevolved/s0/r3")
    dvc(project, "repro", "--quiet")
    assert ran(project) == []
    last = read_artifact(project / "artifacts/coevolved/s0/r3/policy", "policy")
    last.verify()
    removed = read_artifact(project / "artifacts/coevolved/s0/r2/policy", "policy")
    removed.verify()
    with pytest.raises(RemovedError, match=r"r2/policy/online.safetensors was removed by `rank-e gc`: docs/dvc.md"):
        removed._file("online.safetensors")

    rounds = [f"policy@coevolved-round{index}" for index in (0, 1)]
    dvc(project, "repro", "--quiet", "--force", "--single-item", *rounds)
    assert ran(project) == ["policy 1", "policy 2"]
    before, now = files(made), files(project)
    assert all(now[name] == data for name, data in before.items() if "r2/policy" in name)
    assert dvc(project, "status").split("\n")[0::3] == ["report:", ""]  # what reads manifests has nothing to do


def test_another_machine_restores_what_is_left_and_computes_nothing(
    freed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    clone = tmp_path / "b"
    shutil.copytree(
        freed[0], clone, symlinks=True, ignore=shutil.ignore_patterns("artifacts", "cache", "tmp", "dvc.lock", "report")
    )
    assert not (clone / ".dvc/cache").exists()
    dvc(clone, "fetch", "--run-cache", "--quiet")
    dvc(clone, "repro", "--pull", "--quiet")
    assert ran(clone) == [] and files(clone) == files(freed[0])


def test_a_call_that_was_killed_is_finished_by_the_next(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Path(shutil.copytree(made, tmp_path / "a", symlinks=True))
    monkeypatch.setattr("pipeline.collecting._forget_here", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        gc(project, monkeypatch)
    monkeypatch.undo()
    lost = set(files(made).values()) - set(files(project).values())
    assert lost and lost <= objects(project / ".dvc/cache")
    gc(project, monkeypatch)
    assert not lost & objects(project / ".dvc/cache")
    assert "up to date" in dvc(project, "status")


def test_a_remote_that_is_not_there_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(RankEError, match=r"^remote nowhere: .*nowhere.*; what is done is kept here; [^\n]*$"):
        list(collect(project, load(), Keep(), DROPPED, "nowhere", really=True))


def test_nothing_goes_where_it_is_not_known_what_others_share(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Path(shutil.copytree(made, tmp_path / "a", symlinks=True))
    lists = sorted((project / ".dvc/cache/files/md5").glob("??/*.dir"))
    lists[0].unlink()
    with pytest.raises(
        RankEError, match=r"^artifacts/[^\n]*: DVC's cache has no list of its files; `dvc fetch` [^\n]*$"
    ):
        gc(project, monkeypatch)
    assert files(project) == files(made) and set(files(made).values()) <= objects(project / ".dvc/cache")
