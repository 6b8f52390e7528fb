"""Stages forked from a warm process: the same output, exit code and surroundings as a process of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.runtime.warm import SOCKET, warm_stages
from tests.helpers.warm_project import changed_server, gone, run, start, wait_until, write_project

FAKE = """
import os, pathlib, signal, sys, time
print("torch" in sys.modules, pathlib.Path.cwd().name, os.environ["COLOUR"], sys.argv)
print("to stderr", file=sys.stderr)
pathlib.Path("pid").write_text(str(os.getpid()))
match sys.argv[1]:
    case "sleep":
        time.sleep(60)
    case "again":  # the second time it is quick
        if pathlib.Path("once").exists():
            sys.exit(5)
        pathlib.Path("once").touch()
        time.sleep(60)
    case "deaf" | "saves" as word:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if word == "deaf" else lambda *_: sys.exit(33))
        pathlib.Path("heard").touch()
        time.sleep(60)
    case "escapes":
        sys.stdout.reconfigure(errors="backslashreplace")
    case "message":
        sys.exit("what went wrong")
    case "raise":
        raise ValueError("unforeseen")
    case code:
        sys.exit(int(code))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, FAKE)
    return folder


@pytest.fixture(scope="module")
def warm(project: Path) -> Iterator[str]:
    with warm_stages(project):
        yield os.environ[SOCKET]


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("7", 7), ("message", 1), ("raise", 1)])
def test_a_forked_stage_is_like_a_process_of_its_own(project: Path, warm: str, word: str, code: int) -> None:
    forked = run(project, word, COLOUR="blue")
    alone = run(project, word, COLOUR="blue", **{SOCKET: ""})
    assert forked[0] == alone[0] == code
    # The one difference: torch is there already.
    assert forked[1] == alone[1].replace("False", "True", 1)
    assert forked[1].startswith(f"True {project.name} blue [") and forked[1].endswith(f"'{word}']\n")
    assert forked[2].splitlines()[0] == "to stderr" and forked[2].splitlines()[-1] == alone[2].splitlines()[-1]


def test_stages_run_side_by_side(project: Path, warm: str) -> None:
    sleeper = start(project, "sleep")
    assert run(project, "0")[0] == 0  # it does not wait for the sleeper
    sleeper.kill()
    sleeper.communicate()


def test_the_warm_process_survives_stages_that_end_as_their_askers_do(project: Path, warm: str) -> None:
    askers = [start(project, "0") for _ in range(12)]
    for number, asker in enumerate(askers):
        time.sleep(0.01 * number)  # some are gone before, some while, some after their stage ends
        asker.kill()
    for asker in askers:
        asker.communicate()
    assert run(project, "0")[0] == 0


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_who_asked_for_it(project: Path, warm: str, signal_: int) -> None:
    asker, stage = begun(project, "sleep")
    assert stage != asker.pid and not gone(stage)
    asker.send_signal(signal_)
    asker.communicate()
    wait_until(lambda: gone(stage))


def begun(project: Path, word: str) -> tuple[subprocess.Popen[str], int]:
    """Who asked for a stage, and the stage's own process, which has begun."""
    (project / "pid").unlink(missing_ok=True)
    asker = start(project, word)
    wait_until(lambda: (project / "pid").exists() and (project / "pid").read_text())
    return asker, int((project / "pid").read_text())


def test_sigterm_to_who_asked_is_the_stages_and_its_exit_code_comes_back(project: Path, warm: str) -> None:
    (project / "heard").unlink(missing_ok=True)
    asker, stage = begun(project, "saves")
    wait_until((project / "heard").exists)
    asker.send_signal(signal.SIGTERM)
    asker.communicate(timeout=20)
    assert asker.returncode == 33 and gone(stage)


def test_a_stage_that_does_not_end_when_asked_is_ended(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_server(
        monkeypatch,
        "import socket, sys\nfrom stages.runtime import server\n"
        "server.GRACE = 0.5\nserver.Server(socket.socket(fileno=int(sys.argv[1]))).run()\n",
    )
    monkeypatch.delenv(SOCKET, raising=False)
    (project / "heard").unlink(missing_ok=True)
    with warm_stages(project):
        asker, stage = begun(project, "deaf")
        wait_until((project / "heard").exists)
        asker.send_signal(signal.SIGTERM)
        asker.communicate(timeout=20)
        assert asker.returncode == 128 + signal.SIGKILL and gone(stage)


def test_a_killed_stage_is_an_error(project: Path, warm: str) -> None:
    asker, stage = begun(project, "sleep")
    os.kill(stage, signal.SIGKILL)
    asker.communicate()
    assert asker.returncode == 128 + signal.SIGKILL


def test_a_killed_warm_process_is_replaced_and_its_stage_begins_again(project: Path, warm: str) -> None:
    (project / "once").unlink(missing_ok=True)
    asker, stage = begun(project, "again")
    wait_until((project / "once").exists)
    server = int(Path(f"/proc/{stage}/stat").read_text().rpartition(")")[2].split()[1])  # its parent
    os.kill(server, signal.SIGKILL)
    _, errors = asker.communicate(timeout=60)
    assert asker.returncode == 5 and "its warm process ended: it begins again in another" in errors
    assert gone(stage) and run(project, "0")[0] == 0


def test_a_warm_process_that_cannot_start_is_given_up(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(project / "broken"))
    (project / "broken").mkdir()
    (project / "broken" / "torch.py").write_text("raise SystemExit('no torch here')")
    monkeypatch.delenv(SOCKET, raising=False)
    with warm_stages(project):
        code, _, err = run(project, "0")
    assert code == 1 and "is gone" in err.splitlines()[-1]
    assert capfd.readouterr().err.splitlines().count("no torch here") == 3


def test_the_warm_process_ends_with_its_block_and_says_when_it_is_gone(project: Path) -> None:
    before = os.environ.pop(SOCKET, None)
    try:
        with warm_stages(project):
            server = os.environ[SOCKET]
        assert SOCKET not in os.environ
        code, _, err = run(project, "0", **{SOCKET: server})
        assert code == 1 and f"the warm process at {server} is gone" in err and len(err.splitlines()) == 1
    finally:
        if before is not None:
            os.environ[SOCKET] = before


BOTH_AT_ONCE = """
import os, socket, sys
from stages.runtime.server import Server
server = Server(socket.socket(socket.AF_UNIX))
here, there = socket.socketpair()
child = os.fork()
if child == 0:
    os._exit(3)
there.close()
watch = os.pidfd_open(child)
for file in (watch, here):
    server.selector.register(file, 1)
server._ended(child, watch, here)
server._abandoned(child, here)
print("alive")
"""


def test_a_stage_and_its_asker_may_end_in_one_instant(project: Path) -> None:
    # One look at the selector can report both: the second must find that all is done.
    command = [sys.executable, "-c", BOTH_AT_ONCE]
    process = subprocess.Popen(command, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "alive\n")


def test_a_stages_output_is_a_pipe_whatever_the_servers_was(project: Path, warm: str) -> None:
    process = start(project, "escapes")
    assert process.wait(30) == 0, process.communicate()
