"""A stage that is asked to end saves its state and ends; the next try goes on from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRY = """
import hashlib, sys, time
import torch
from stages.runtime import termination
from stages.runtime.stage import main

def run(stage):
    word = sys.argv.pop()
    if word == "alone":
        print("ready", flush=True)
        time.sleep(60)
    state = stage.state()
    saved = state.load()
    for index in stage.progress(range(saved[1]["next"] if saved else 0, 100), "policy"):
        print(index, flush=True)
        if word == "stuck" and index == 2:
            termination.LIMIT = 1.0
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # a long call of a library
        time.sleep(0.2)
        if word != "stateless" and state.due():
            state.save({"weight": torch.tensor([float(index)])}, {"next": index + 1})

arguments = ["--arm", "frozen", "--seed", "0", "--round", "1"]
main("policy", run, arguments)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "profiles/shapes.yaml").read_text())
    (tmp_path / "entry.py").write_text(ENTRY)
    (tmp_path / "assets").symlink_to(ROOT / "assets")  # what the params name must be there
    return tmp_path


def start(project: Path, word: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    command = [sys.executable, "entry.py", word]
    return subprocess.Popen(command, cwd=project, stdout=pipe, stderr=pipe, text=True, env=environment)


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    while (said := process.stdout.readline()) != f"{line}\n":
        assert said, process.communicate()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_saves_its_state_after_the_step_and_goes_on_from_there(project: Path, kind: signal.Signals) -> None:
    process = start(project, "saves")
    wait_for(process, "2")
    process.send_signal(kind)
    process.send_signal(kind)  # a second one disturbs nothing
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (128 + kind, "")
    assert errors == f"policy: stopped by {kind.name}; run again: what is saved is kept\n"
    again = start(project, "saves")
    assert again.stdout is not None and again.stdout.readline() == "3\n"
    again.kill()
    again.communicate()


@pytest.mark.parametrize(("word", "line"), [("alone", "ready"), ("stateless", "1")])
def test_what_keeps_no_state_ends_at_once(project: Path, word: str, line: str) -> None:
    process = start(project, word)
    wait_for(process, line)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - asked < 5
    assert process.returncode == 143 and len(errors.splitlines()) == 1 and "stopped by SIGTERM" in errors


def test_a_call_that_never_returns_is_ended_after_the_limit(project: Path) -> None:
    process = start(project, "stuck")
    wait_for(process, "2")
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert 0.9 < time.monotonic() - asked < 5
    assert process.returncode == 143
    assert errors == "policy: not done 1 s after the signal: what was saved before is kept\n"
