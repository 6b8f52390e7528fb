"""Two clones of a project and a folder as their remote: what one has made the other restores, stage by stage."""

import contextlib
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.dvc import Repro, StageError
from pipeline.graph import load_graph
from pipeline.handover import between
from rank_e.errors import RankEError
from tests.helpers.project import dvc
from tests.helpers.rounds_project import write_rounds_project

STAGES = ("rollouts", "policy", "decoder")


def reproduce(project: Path, rounds: tuple[int, ...], remote: str | None = "team") -> tuple[dict[str, str], list[str]]:
    """What became of the stages of these rounds, up to one that failed, and what went wrong beside them."""
    nodes = [node for node in load_graph(project) if node.round in rounds and node.name in ("start", *STAGES)]
    nodes.sort(key=lambda node: node.round or 0)
    repro, outcomes = Repro(project, nodes), {}
    with between(project, None, remote) as failures:
        for node in nodes:
            name = f"{node.name} {node.round}"
            try:
                outcomes[name] = repro.run(node, print).outcome
            except StageError:
                outcomes[name] = "failed"
                break
    return outcomes, failures


def kill_at_work(kind: str, project: Path) -> None:
    """SIGKILL to the waiting stage and its DVC, once it has begun its artifact; what still hands over the one before it
    goes on.
    """
    deadline = time.monotonic() + 120
    while (project / f"wait-{kind}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if Path(process.cwd()) == project and "pipeline.remote" not in process.cmdline():
                process.kill()


def files(project: Path) -> dict[str, bytes]:
    folder = project / "artifacts"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_another_machine_finishes_what_one_was_killed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    here, there, alone = (tmp_path / name for name in ("a", "b", "alone"))
    here.mkdir()
    write_rounds_project(here, 2, [2])
    for folder in (here, there, alone):
        if folder != here:
            shutil.copytree(here, folder, symlinks=True)
    for folder in (here, there):
        dvc(folder, "remote", "add", "team", str(tmp_path / "team"), "--quiet")

    first = {"start 0", *(f"{name} 1" for name in STAGES)}
    assert reproduce(here, (0, 1)) == (dict.fromkeys(first, "ran"), [])
    assert not (there / "dvc.lock").exists()
    (there / "wait-policy").touch()
    killer = threading.Thread(target=kill_at_work, args=("policy", there))
    killer.start()
    second = {"rollouts 2": "ran", "policy 2": "failed"}
    assert reproduce(there, (0, 1, 2)) == (dict.fromkeys(first, "restored") | second, [])
    killer.join()
    assert (there / "ran").read_text().splitlines() == ["rollouts 2", "policy 2"]
    assert not (there / "artifacts/coevolved/s0/r2/policy/manifest.json").exists()

    # The other machine takes up what was handed over, and no more: the end is that of a run that was alone.
    rest = {"rollouts 2": "restored", "policy 2": "ran", "decoder 2": "ran"}
    assert reproduce(here, (2,)) == (rest, [])
    reproduce(alone, (0, 1, 2), None)
    assert files(here) == files(alone) != {}


@pytest.mark.slow
def test_a_remote_without_room_is_said_and_the_work_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "a"
    project.mkdir()
    write_rounds_project(project, 1, [1])
    (tmp_path / "taken").write_text("a file where the remote's folder should be")
    dvc(project, "remote", "add", "team", str(tmp_path / "taken"), "--quiet")
    outcomes, failures = reproduce(project, (0,))
    assert outcomes == {"start 0": "ran"} and files(project)
    assert len(failures) == 1 and failures[0].startswith("rank-e: remote team: ") and "is kept here" in failures[0]
    with pytest.raises(RankEError, match=r"^remote elsewhere: [^\n]*is kept here[^\n]*$"):
        reproduce(project, (0,), "elsewhere")
