"""A project with one fake stage, and warm processes for it: what is tried of them needs no real stage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNTIME = ("__init__", "process", "warm", "wire", "resident", "server")


def write_project(folder: Path, stage: str) -> None:
    """A project whose only stage, `fake`, is the code `stage`."""
    (folder / "stages" / "runtime").mkdir(parents=True)
    for name in ("__init__", "__main__", *(f"runtime/{name}" for name in RUNTIME)):
        shutil.copy(ROOT / "stages" / f"{name}.py", folder / "stages" / f"{name}.py")
    (folder / "stages" / "fake.py").write_text(stage)
    (folder / "rank_e").symlink_to(ROOT / "rank_e")


def start(project: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m stages fake` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages", "fake", *arguments],
        cwd=project,
        env={**os.environ, "COLOUR": "red", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(project: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Its exit code, output and errors."""
    process = start(project, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def changed_server(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Warm processes run `code`, with what they are started with as sys.argv[1]."""

    def popen(words: list[str], real: Callable[..., object] = subprocess.Popen, **options: object) -> object:
        warm = words[1:3] == ["-m", "stages.runtime.server"]
        return real([words[0], "-c", code, *words[3:]] if warm else words, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that its parent has not buried yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or before it was read
        return True


def wait_until(condition: Callable[[], object]) -> None:
    """Until it holds, at most 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
