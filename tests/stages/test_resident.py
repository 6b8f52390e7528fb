"""One process for the stages of a GPU: what it keeps, when another takes its place, and that stages do not notice."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.runtime.resident import settings_of
from stages.runtime.warm import SOCKET, warm_stages
from tests.helpers.warm_project import changed_server, gone, run, start, wait_until, write_project

FAKE = """
import os, pathlib, signal, sys, time
import helper
print(os.getpid(), helper.VALUE, os.environ["COLOUR"], pathlib.Path.cwd().name, sys.argv[1:])
print("to stderr", file=sys.stderr)
pathlib.Path("pid").write_text(str(os.getpid()))
match sys.argv[1]:
    case "sleep":
        time.sleep(60)
    case "saves":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(33))
        pathlib.Path("heard").touch()
        time.sleep(60)
    case "until":
        while not pathlib.Path("now").exists():
            time.sleep(0.02)
    case "raise":
        raise ValueError("unforeseen")
    case code:
        sys.exit(int(code))
"""
ON_THE_CPU = (
    "import socket, sys\nfrom stages.runtime import resident, server\n"
    "resident.DEVICES = ('cpu',)\nserver.Server(socket.socket(fileno=int(sys.argv[1]))).run()\n"
)
PARAMS = "runtime:\n  device: cpu\n  threads: {}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose stages on the CPU share a process."""
    write_project(tmp_path, FAKE)
    (tmp_path / "helper.py").write_text("VALUE = 'old'\n")
    (tmp_path / "params.yaml").write_text(PARAMS.format(1))
    changed_server(monkeypatch, ON_THE_CPU)
    monkeypatch.delenv(SOCKET, raising=False)
    with warm_stages(tmp_path):
        yield tmp_path


def pid_of(answer: tuple[int, str, str]) -> int:
    return int(answer[1].split()[0])


def test_stages_share_a_process_and_each_has_its_own_surroundings(project: Path) -> None:
    first, second = run(project, "0"), run(project, "0", COLOUR="blue")
    assert first[0] == second[0] == 0
    assert pid_of(first) == pid_of(second)
    assert " red " in first[1] and " blue " in second[1]
    assert first[2] == second[2] == "to stderr\n"


@pytest.mark.parametrize(("word", "code"), [("7", 7), ("raise", 1)])
def test_a_stage_that_fails_is_the_last_of_its_process(project: Path, word: str, code: int) -> None:
    before, failed, after = run(project, "0"), run(project, word), run(project, "0")
    assert [answer[0] for answer in (before, failed, after)] == [0, code, 0]
    assert pid_of(before) == pid_of(failed) != pid_of(after)
    wait_until(lambda: gone(pid_of(failed)))


def test_changed_code_and_changed_settings_get_a_new_process(project: Path) -> None:
    old = run(project, "0")
    (project / "helper.py").write_text("VALUE = 'newer'\n")
    new = run(project, "0")
    assert " old " in old[1] and " newer " in new[1]
    wait_until(lambda: gone(pid_of(old)))
    (project / "params.yaml").write_text(PARAMS.format(2))
    other = run(project, "0")
    assert len({pid_of(answer) for answer in (old, new, other)}) == 3
    wait_until(lambda: gone(pid_of(new)))
    assert pid_of(run(project, "0")) == pid_of(other)


def test_what_comes_while_it_works_gets_a_process_of_its_own(project: Path) -> None:
    resident = pid_of(run(project, "0"))
    busy = begun(project, "until")
    # Of neither is the output held open by the other.
    beside = run(project, "0")
    assert beside[0] == 0 and pid_of(beside) != resident
    (project / "now").touch()
    out, _ = busy.communicate(timeout=20)
    assert busy.returncode == 0 and int(out.split()[0]) == resident
    assert pid_of(run(project, "0")) == resident


def begun(project: Path, word: str):  # type: ignore[no-untyped-def]
    """Who asked for a stage that has begun."""
    (project / "pid").unlink(missing_ok=True)
    asker = start(project, word)
    wait_until(lambda: (project / "pid").exists() and (project / "pid").read_text())
    return asker


def test_a_stage_ends_while_one_beside_it_goes_on(project: Path) -> None:
    resident = pid_of(run(project, "0"))
    first = begun(project, "until")
    second = begun(project, "sleep")  # in a fork that began while the first was at work
    (project / "now").touch()
    out, _ = first.communicate(timeout=20)  # its output ends with it
    assert int(out.split()[0]) == resident and second.poll() is None
    second.kill()
    second.communicate()


def test_a_killed_process_is_an_error_of_its_stage_alone(project: Path) -> None:
    asker = begun(project, "sleep")
    os.kill(int((project / "pid").read_text()), signal.SIGKILL)
    asker.communicate(timeout=20)
    assert asker.returncode == 128 + signal.SIGKILL
    assert run(project, "0")[0] == 0
    idle = pid_of(run(project, "0"))
    os.kill(idle, signal.SIGKILL)
    wait_until(lambda: gone(idle))
    assert run(project, "0")[0] == 0


def test_sigterm_to_who_asked_is_the_stages(project: Path) -> None:
    asker = begun(project, "saves")
    wait_until((project / "heard").exists)
    asker.send_signal(signal.SIGTERM)
    asker.communicate(timeout=20)
    stage = int((project / "pid").read_text())
    assert asker.returncode == 33
    wait_until(lambda: gone(stage))
    assert run(project, "0")[0] == 0


def test_it_ends_with_its_run(project: Path) -> None:
    asker = begun(project, "0")
    asker.communicate(timeout=20)
    resident = int((project / "pid").read_text())
    server = int(Path(f"/proc/{resident}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: gone(resident))


@pytest.mark.parametrize(
    ("params", "shared"),
    [("runtime: {device: cuda}", True), ("runtime: {device: 'cuda:1'}", True), ("runtime: {device: cpu}", False)]
    + [(text, False) for text in ("", "cuda", "runtime: cuda", "{cuda", "runtime: {dtype: cuda}")],
)
def test_stages_of_a_gpu_alone_share_a_process(tmp_path: Path, params: str, shared: bool) -> None:
    (tmp_path / "params.yaml").write_text(params)
    request = json.dumps({"cwd": str(tmp_path), "environ": {}, "words": []}).encode()
    assert bool(settings_of(request)) is shared


def test_processes_for_other_devices_are_others(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("runtime: {device: cuda}")
    asked = [{"cwd": str(tmp_path), "environ": visible, "words": []} for visible in ({}, {"CUDA_VISIBLE_DEVICES": "1"})]
    assert len({settings_of(json.dumps(request).encode()) for request in asked}) == 2
