"""What DVC writes is whole at every moment, and what it was before wherever the process dies."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import pytest
from dvc import rwlock
from dvc.fs import LocalFileSystem
from dvc.utils.serialize import dump_yaml, load_yaml, modify_yaml

from pipeline.dvc_writing import writing_whole
from tests.helpers.project import ROOT, dvc, environment

STAGES = """
stages:
  one: {cmd: echo 1 > one, deps: [given], outs: [one]}
  two: {cmd: echo 2 > two, deps: [one, given], outs: [two]}
"""
KILLED = """
import os, signal, sys
from dvc.utils.serialize import _yaml

dump = _yaml._dump

def half(data, stream):
    if "schema" not in data:  # not dvc.lock: what DVC remembers of a stage's run
        return dump(data, stream)
    stream.write("schema: '2.0'\\nstages:\\n  one:\\n    cmd: ec")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)

_yaml._dump = half
from pipeline.{module} import main
sys.argv[1:] = ["repro"]
main()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / "given").write_text("first")
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    return tmp_path


@pytest.mark.parametrize("module", ["dvc_command", "dvc_restore"])
def test_a_kill_while_dvc_lock_is_written_leaves_the_one_that_was_there(project: Path, module: str) -> None:
    given = environment() | {"PYTHONPATH": str(ROOT)}

    def kill() -> int:
        command = [sys.executable, "-c", KILLED.format(module=module)]
        return subprocess.run(command, cwd=project, env=given, capture_output=True).returncode

    assert kill() == -signal.SIGKILL and not (project / "dvc.lock").exists()
    subprocess.run([sys.executable, "-m", f"pipeline.{module}", "repro"], cwd=project, env=given, check=True)
    before = (project / "dvc.lock").read_bytes()
    (project / "given").write_text("second")
    assert kill() == -signal.SIGKILL and (project / "dvc.lock").read_bytes() == before
    again = [sys.executable, "-m", f"pipeline.{module}", "repro"]
    done = subprocess.run(again, cwd=project, env=given, check=True, capture_output=True, text=True)
    assert "Stage 'one' is cached" in done.stdout and "corrupted" not in done.stderr  # what the killed one had made
    assert list(load_yaml(project / "dvc.lock")["stages"]) == ["one", "two"]
    assert not list(project.glob(".dvc.lock*"))


@pytest.mark.parametrize("whole", [True, False])
def test_a_full_disk_leaves_the_rwlock_as_it_was(tmp_path: Path, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without that DVC could not read it: what the test is about is not DVC's own by now."""

    def full(lock: object, file: IO[str]) -> None:
        file.write('{"write": {"a')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def use() -> None:
        with rwlock.rwlock(str(tmp_path), LocalFileSystem(), "a command", [], ["out"], False):
            pass

    with writing_whole() if whole else nullcontext():
        use()
        before = (tmp_path / "rwlock").read_text()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(json, "dump", full)
            use()
        assert ((tmp_path / "rwlock").read_text() == before) is whole
        with nullcontext() if whole else pytest.raises(rwlock.RWLockFileCorruptedError):
            use()


def test_links_and_modes_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text("a: 1  # why\n")
    real.chmod(0o664)
    link.symlink_to(real)
    with writing_whole():
        with modify_yaml(link) as data:
            data["b"] = 2
        assert link.is_symlink() and real.read_text() == "a: 1  # why\nb: 2\n"
        dump_yaml(link, {"c": 3})
    assert link.is_symlink() and real.read_text() == "c: 3\n" and stat.S_IMODE(real.stat().st_mode) == 0o664


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text("schema: '2.0'\n")
    with writing_whole(), pytest.raises(Exception, match="cannot represent"):
        dump_yaml(path, {"a": object()})
    assert path.read_text() == "schema: '2.0'\n" and [item.name for item in tmp_path.iterdir()] == ["dvc.lock"]


def test_a_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text("schema: '2.0'\n")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write into it all the same
    with writing_whole(), pytest.raises(PermissionError):
        dump_yaml(path, {"a": 1})
    assert path.read_text() == "schema: '2.0'\n"
