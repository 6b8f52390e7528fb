"""Nothing that a run started outlives it: SIGKILL, SIGTERM, Ctrl-C, and an ordinary end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline.guardian import SERVER, members
from pipeline.lock import owning
from stages.runtime.locks import TOKEN, read_holder
from tests.pipeline.test_flow import command_line, environment, wait_for_pid

ROOT = Path(__file__).parents[2]
CHILD = """
import pathlib, signal, sys, time
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif sys.argv[1] != "plain":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("I talk when I am asked to end"))
pathlib.Path(sys.argv[1]).touch()
time.sleep(100)
"""
RUN = """
import queue, subprocess, sys
from pathlib import Path
from pipeline import guardian
from pipeline.dvc import ending_children
from pipeline.guardian import leave, working

guardian.HASTE = 1.0
with working(Path(), "rank-e run", 0), ending_children(leave):
    for name in sys.argv[1:]:  # each in a session of its own: no group holds them together
        subprocess.Popen([sys.executable, "child.py", name], start_new_session=True)
    while not all(Path(name).exists() for name in sys.argv[1:]):
        pass
    print("ready", flush=True)
    if sys.argv[1:]:
        queue.SimpleQueue().get()
"""


@pytest.fixture
def project(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (toy / "child.py").write_text(CHILD)
    (toy / "run.py").write_text(RUN)
    monkeypatch.chdir(toy)
    monkeypatch.delenv(TOKEN, raising=False)
    return toy


def start(*children: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "run.py", *children],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n", process.communicate()
    return process


def token_of(project: Path) -> str:
    holder = read_holder(project / ".rank-e" / "lock")
    assert holder is not None
    return holder.token


@pytest.mark.parametrize(("kind", "seconds"), [(signal.SIGINT, 5), (signal.SIGTERM, 12)])
def test_a_signal_ends_all_in_time_and_in_one_line(project: Path, kind: signal.Signals, seconds: int) -> None:
    talking = ["pipeline.cli", SERVER] if kind == signal.SIGINT else [SERVER]
    process = start("plain", *(["deaf"] if kind == signal.SIGINT else []), *talking)
    token, asked = token_of(project), time.monotonic()
    assert len(members(token)) == (4 if kind == signal.SIGINT else 2)
    process.send_signal(kind)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - asked < seconds
    name = "Ctrl-C" if kind == signal.SIGINT else "SIGTERM"
    line = f"rank-e: stopped by {name}; what is done is kept: `rank-e run` goes on from there\n"
    assert (process.returncode, output, errors) == (128 + kind, "", line)
    assert members(token) == [] and guardians(project) == []
    with owning(project, "rank-e run", 0):
        pass


def guardians(project: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline", "cwd"])  # None where a process may not be read
    return [item for item in found if item.info["cwd"] == str(project) and "pipeline.guardian" in item.info["cmdline"]]


def test_after_sigkill_the_guardian_ends_what_is_left_and_keeps_the_lock_until_then(project: Path) -> None:
    process = start("plain", "deaf")
    token = token_of(project)
    process.kill()
    process.wait()
    assert len(members(token)) > 0
    with owning(project, "rank-e run", 0):  # for what a dead holder left everybody waits
        assert members(token) == []


def test_a_run_that_ends_by_itself_takes_its_guardian_along(project: Path) -> None:
    process = start()
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", "")
    assert guardians(project) == []


def test_a_server_of_ones_own_learns_that_the_run_was_stopped() -> None:
    from pipeline.telling import say_cancelled

    said = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)  # no csrf-token: Prefect's client goes on without
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            said.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            answer = json.dumps({"state": said[0][1]["state"], "status": "ACCEPT", "details": {}}).encode()
            self.send_response(201)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run = str(uuid4())
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
        say_cancelled(run)
    server.shutdown()
    server.server_close()
    (path, request), *_ = said
    assert path == f"/api/flow_runs/{run}/set_state"
    assert request["state"]["type"] == "CANCELLED" and request["force"]


def processes_in(folder: Path) -> list[str]:
    """The command lines of all that works in a folder, or below, and of Prefect's servers that belong to it."""
    found = []
    for process in psutil.process_iter():
        try:
            home = process.environ().get("PREFECT_HOME", "")
            if process.status() != psutil.STATUS_ZOMBIE and home == str(folder / ".prefect"):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def started(toy: Path, errors: Path) -> subprocess.Popen[bytes]:
    """`rank-e run` in the midst of a slow stage."""
    (toy / "slow-policy-coevolved-1").touch()
    with errors.open("w") as file:
        process = subprocess.Popen(
            command_line("run", "--no-track"),
            cwd=toy, env=environment(toy), stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    wait_for_pid(toy)
    until = time.monotonic() + 60
    while "hello from policy-coevolved-1" not in errors.read_text() and time.monotonic() < until:
        time.sleep(0.05)  # what the stage said travels by itself, and must not come after what a test reads here
    return process


@pytest.mark.slow
def test_a_killed_run_leaves_no_server_no_stage_and_no_folder(toy: Path, tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("rank-e-*"))
    process = started(toy, tmp_path / "said")
    assert len(processes_in(toy)) >= 5  # the run, its guardian, the server, the warm process, dvc, the stage
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while processes_in(toy) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_in(toy) == [] and set(Path("/tmp").glob("rank-e-*")) == before
    (toy / "slow-policy-coevolved-1").unlink()


@pytest.mark.slow
def test_ctrl_c_gives_the_shell_back_in_one_line_and_leaves_nothing(toy: Path, tmp_path: Path) -> None:
    process = started(toy, tmp_path / "said")
    said = (tmp_path / "said").read_text()
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    assert process.wait(30) == 130
    assert time.monotonic() - asked < 5
    assert processes_in(toy) == []
    new = (tmp_path / "said").read_text().removeprefix(said)
    assert re.fullmatch(r"rank-e: stopped by Ctrl-C; what is done is kept: `rank-e run` goes on from there\n", new)
