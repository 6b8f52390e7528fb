"""Stages forked from a warm process: the same output, exit code and surroundings as a process of their own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.runtime.warm import SOCKET, warm_stages

ROOT = Path(__file__).parents[2]
FAKE = """
import os, pathlib, sys, time
print("torch" in sys.modules, pathlib.Path.cwd().name, os.environ["COLOUR"], sys.argv)
print("to stderr", file=sys.stderr)
pathlib.Path("pid").write_text(str(os.getpid()))
match sys.argv[1]:
    case "sleep":
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
    """A project whose only stage is FAKE."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "stages" / "runtime").mkdir(parents=True)
    for name in ("__init__", "__main__", "runtime/__init__", "runtime/process", "runtime/warm"):
        shutil.copy(ROOT / "stages" / f"{name}.py", folder / "stages" / f"{name}.py")
    (folder / "stages" / "fake.py").write_text(FAKE)
    (folder / "rank_e").symlink_to(ROOT / "rank_e")
    return folder


@pytest.fixture(scope="module")
def warm(project: Path) -> Iterator[str]:
    with warm_stages(project):
        yield os.environ[SOCKET]


def start(project: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages", "fake", *arguments],
        cwd=project,
        env={**os.environ, "COLOUR": "red", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(project: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(project, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that its parent has not buried yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or before it was read
        return True


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


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
    (project / "pid").unlink(missing_ok=True)
    asker = start(project, "sleep")
    wait_until(lambda: (project / "pid").exists() and (project / "pid").read_text())
    stage = int((project / "pid").read_text())
    assert stage != asker.pid and not gone(stage)
    asker.send_signal(signal_)
    asker.communicate()
    wait_until(lambda: gone(stage))


def test_a_killed_stage_is_an_error(project: Path, warm: str) -> None:
    (project / "pid").unlink(missing_ok=True)
    asker = start(project, "sleep")
    wait_until(lambda: (project / "pid").exists() and (project / "pid").read_text())
    os.kill(int((project / "pid").read_text()), signal.SIGKILL)
    asker.communicate()
    assert asker.returncode == 128 + signal.SIGKILL


def test_the_warm_process_ends_with_its_block_and_says_when_it_is_gone(project: Path) -> None:
    before = os.environ.pop(SOCKET, None)
    try:
        with warm_stages(project):
            server = os.environ[SOCKET]
        assert SOCKET not in os.environ and not Path(server).exists()
        code, _, err = run(project, "0", **{SOCKET: server})
        assert code == 1 and f"the warm process at {server} is gone" in err and len(err.splitlines()) == 1
    finally:
        if before is not None:
            os.environ[SOCKET] = before


BOTH_AT_ONCE = """
import os, socket, sys
from stages.runtime.warm import Server
server = Server(sys.argv[1])
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


def test_a_stage_and_its_asker_may_end_in_one_instant(project: Path, tmp_path: Path) -> None:
    # One look at the selector can report both: the second must find that all is done.
    command = [sys.executable, "-c", BOTH_AT_ONCE, str(tmp_path / "sock")]
    process = subprocess.Popen(command, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "alive\n")


def test_a_temporary_folder_too_long_for_a_socket_is_left_alone(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delenv(SOCKET, raising=False)
    with warm_stages(project):
        assert os.environ[SOCKET].startswith("/tmp/") and list(long.iterdir()) == []


def test_a_stages_output_is_a_pipe_whatever_the_servers_was(project: Path, warm: str) -> None:
    process = start(project, "escapes")
    assert process.wait(30) == 0, process.communicate()
