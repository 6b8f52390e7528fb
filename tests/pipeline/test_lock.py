"""One at a time works in a project: runs, repairs, stages under `dvc repro`, and what DVC leaves when it is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.dvc_command import reproduces
from pipeline.lock import owning, remove_dead
from rank_e.errors import RankEError
from stages.runtime.locks import TOKEN, LockedError, patience, stage_locks
from tests.helpers.project import environment

ROOT = Path(__file__).parents[2]
STAGE = """
import os, sys, time
from pathlib import Path
from stages.runtime.failures import one_line
from stages.runtime.locks import stage_locks

name = sys.argv[1]
with one_line(name), stage_locks(Path(".rank-e/locks"), name, 0):
    Path(f"{name}-began").write_text(str(os.getppid()))
    while Path("slow").exists():
        time.sleep(0.05)
    Path(f"{name}.txt").write_text(name)
"""
PIPELINE = """
stages:
  a: {cmd: exec python stage.py a, deps: [stage.py], outs: [a.txt]}
  b: {cmd: exec python stage.py b, deps: [a.txt], outs: [b.txt]}
  c: {cmd: exec python stage.py c, deps: [b.txt], outs: [c.txt]}
"""
OWNER = """
import sys, time
from pathlib import Path
from pipeline.lock import owning
with owning(Path(), "rank-e run", 0):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    for name in ("stages", "rank_e", "pipeline"):
        (folder / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(template, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(folder)
    monkeypatch.delenv(TOKEN, raising=False)
    return folder


def start(*words: str, **options: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, *words], env=environment(), stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True,
        **options,
    )  # fmt: skip


@contextmanager
def another_run() -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the project."""
    process = start("-c", OWNER)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    yield process
    process.communicate("")


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def busy(holder: str) -> str:
    return f"^{holder} works in this project: wait for it \\(--wait SECONDS, or RANK_E_WAIT=SECONDS\\), or end it$"


def test_the_second_is_refused_in_one_line_that_names_the_first(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with another_run() as first:
        with pytest.raises(LockedError, match=busy(rf"rank-e run \(pid {first.pid}\)")), owning(project, "repair", 0):
            pass
        shutil.copy(ROOT / "params.yaml", project)
        for command in ("repair", "run"):
            with pytest.raises(SystemExit, match=rf"^rank-e: rank-e run \(pid {first.pid}\) works") as end:
                cli.main([command])
            assert len(str(end.value.code).splitlines()) == 1 and capsys.readouterr() == ("", "")
    with owning(project, "rank-e repair", 0):
        pass


def test_a_served_run_is_shown_as_failed_with_that_line(project: Path) -> None:
    from pipeline.flow import co_evolution

    shutil.copy(ROOT / "params.yaml", project)
    with another_run() as first:
        state = co_evolution.fn(str(project), wait=0.5)
    assert state.is_failed()
    assert state.message is not None and state.message.startswith(f"rank-e run (pid {first.pid}) works in this project")


def test_the_second_waits_as_long_as_it_is_told(project: Path) -> None:
    with another_run() as first:
        threading.Timer(1.5, lambda: first.stdin and first.stdin.close()).start()
        with owning(project, "rank-e repair", 60) as lock:
            assert first.wait(10) == 0 and lock.file is not None
        first.stdin = None


def test_a_killed_holder_holds_nothing(project: Path) -> None:
    with another_run() as first:
        first.kill()
        first.wait()
        with owning(project, "rank-e repair", 0) as lock:
            assert lock.file is not None


def test_what_an_owner_starts_belongs_to_it_and_others_do_not(project: Path) -> None:
    with owning(project, "rank-e run", 0):
        with owning(project, "rank-e repair", 0) as lock:
            assert lock.file is None
        with stage_locks(project / ".rank-e" / "locks", "policy", 0):
            pass
        mine = start("stage.py", "a")
        assert mine.communicate()[0] == "" and mine.returncode == 0
        token = os.environ.pop(TOKEN)
        try:
            (project / "a.txt").unlink()
            other = start("stage.py", "a")
            line = f"a: rank-e run (pid {os.getpid()}) works in this project: wait for it (--wait SECONDS, or "
            assert other.communicate()[0].startswith(line) and other.returncode == 1
        finally:
            os.environ[TOKEN] = token
    assert TOKEN not in os.environ


def test_dvc_repro_beside_a_run_is_refused_in_its_stage(project: Path) -> None:
    with owning(project, "rank-e run", 0):
        token = os.environ.pop(TOKEN)
        repro = start("-m", "dvc", "repro")
        output = repro.communicate()[0]
        os.environ[TOKEN] = token
    assert repro.returncode != 0 and "Traceback" not in output and "is busy" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("a: "))
    assert line.startswith(f"a: rank-e run (pid {os.getpid()}) works in this project")
    assert not (project / "a.txt").exists()


def test_a_run_beside_dvc_repro_names_dvc_and_waits_through_all_of_its_stages(project: Path) -> None:
    (project / "slow").touch()
    repro = start("-m", "dvc", "repro")
    wait_until((project / "a-began").exists)
    with pytest.raises(LockedError, match=busy(rf"dvc repro \(pid {repro.pid}\)")), owning(project, "rank-e run", 0):
        pass
    (project / "slow").unlink()
    with owning(project, "rank-e run", 60):
        assert (project / "c.txt").exists()  # not taken in between two stages
        output = repro.communicate()[0]
        assert repro.returncode == 0, output


def test_the_projects_dvc_is_one_process_at_a_time_in_one_line(project: Path) -> None:
    (project / "slow").touch()
    rwlock = project / ".dvc" / "tmp" / "rwlock"
    rwlock.parent.mkdir(exist_ok=True)
    rwlock.write_text("")  # as one that was killed while it wrote it leaves it
    first = start("-m", "pipeline.dvc_command", "repro")
    wait_until((project / "a-began").exists)
    second = start("-m", "pipeline.dvc_command", "repro")
    line = (
        f"dvc: dvc repro (pid {first.pid}) works in this project: wait for it (--wait SECONDS, or RANK_E_WAIT=SECONDS)"
    )
    assert second.communicate()[0] == f"{line}, or end it\n" and second.returncode == 1
    with pytest.raises(LockedError, match=busy(rf"dvc repro \(pid {first.pid}\)")), owning(project, "rank-e run", 0):
        pass
    version = start("-m", "pipeline.dvc_command", "--version")
    assert version.communicate()[0][:2] == "3." and version.returncode == 0
    (project / "slow").unlink()
    assert first.communicate()[0].count("Running stage") == 3 and first.returncode == 0
    assert (project / "a-began").read_text() == str(first.pid)  # DVC itself, not another process


def test_which_of_dvcs_commands_run_stages() -> None:
    for words in ("repro", "-q repro a@b -f", "exp run -S a=1", "experiments run"):
        assert reproduces(words.split()), words
    for words in ("", "status", "exp show", "repro --help", "--cd elsewhere repro", "push repro"):
        assert not reproduces(words.split()), words


def test_dvc_at_work_between_its_stages_is_named(project: Path) -> None:
    code = (
        "from dvc.repo import Repo\nimport sys\nwith Repo().lock:\n    print('mine', flush=True)\n    sys.stdin.read()"
    )
    dvc = start("-c", code)
    assert dvc.stdout is not None and dvc.stdout.readline() == "mine\n"
    with pytest.raises(LockedError, match=busy(rf"dvc \(pid {dvc.pid}\)")), owning(project, "rank-e run", 0):
        pass
    dvc.communicate("")


def test_dvc_repro_killed_in_a_stage_leaves_nothing_in_the_way(project: Path) -> None:
    (project / "slow").touch()
    repro = start("-m", "dvc", "repro", start_new_session=True)
    wait_until((project / "a-began").exists)
    os.killpg(repro.pid, signal.SIGKILL)
    repro.communicate()
    rwlock = project / ".dvc" / "tmp" / "rwlock"
    assert str(repro.pid) in rwlock.read_text()
    with owning(project, "rank-e run", 0):
        assert not rwlock.exists()


def entry(pid: int) -> dict[str, object]:
    return {"pid": pid, "cmd": "dvc repro"}


def test_an_rwlock_goes_when_nobody_alive_stands_in_it(tmp_path: Path) -> None:
    rwlock = tmp_path / "rwlock"
    other = subprocess.Popen(["sleep", "60"])  # alive, but no process of DVC: a number that was given again
    gone = subprocess.Popen(["true"])
    gone.wait()
    for text in (
        "",
        '{"write": {"',
        "[1]",
        '{"write": {"a": 3}}',
        json.dumps({"write": {"a": entry(gone.pid)}, "read": {"b": [entry(other.pid), entry(gone.pid)]}}),
    ):
        rwlock.write_text(text)
        assert remove_dead(rwlock) == [] and not rwlock.exists(), text
    assert remove_dead(rwlock) == []
    other.kill()
    other.wait()
    dvc = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "dvc"], stdin=subprocess.PIPE)
    text = json.dumps({"write": {"a": entry(gone.pid)}, "read": {"b": [entry(dvc.pid)]}})
    rwlock.write_text(text)
    assert remove_dead(rwlock) == [dvc.pid] and rwlock.read_text() == text
    dvc.communicate(b"")


@pytest.mark.parametrize("text", ["soon", "-1", "nan", ""])
def test_how_long_to_wait_is_a_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RANK_E_WAIT", text)
    with pytest.raises(RankEError, match=f"^RANK_E_WAIT='{text}' is no number of seconds from 0 on"):
        patience()
    monkeypatch.setenv("RANK_E_WAIT", "2.5")
    assert patience() == 2.5
    with pytest.raises(SystemExit) as end:
        cli.main(["repair", "--wait", text])
    assert end.value.code == 2
