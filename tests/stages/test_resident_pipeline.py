"""All stages of a small LlamaGen project, one after another in one process: the bytes of processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.runtime.warm import SOCKET, warm_stages
from tests.helpers.in_process import cells, write_project
from tests.helpers.warm_project import changed_server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SERVER = (
    "import socket, sys\nfrom stages.runtime import resident, server\n"
    "{}\nserver.Server(socket.socket(fileno=int(sys.argv[1]))).run()\n"
)
FORKS, ONE = "resident.DEVICES = ()", "resident.DEVICES = ('cpu',); server.Server._fork = None"


def run_all(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: str) -> dict[str, bytes]:
    """Run every stage; the artifacts' files."""
    write_project("llamagen", folder, {})
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")  # a user's own module lies there
    monkeypatch.delenv(SOCKET, raising=False)
    with monkeypatch.context() as patch:
        changed_server(patch, SERVER.format(settings))
        with warm_stages(folder):
            for name, given in cells():
                words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
                subprocess.run([sys.executable, "-m", "stages", name, *words], cwd=folder, check=True)
    root = folder / "artifacts"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_process_that_stays_gives_the_bytes_of_one_for_each_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks, resident = (run_all(tmp_path / name, monkeypatch, s) for name, s in (("forks", FORKS), ("one", ONE)))
    assert len(forks) > 40 and forks.keys() == resident.keys()
    assert [name for name in forks if forks[name] != resident[name]] == []
