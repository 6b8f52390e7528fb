"""What a user can meet ends in one line with thing, place and fix; what nobody foresaw keeps its traceback."""

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dvc.exceptions import DvcException
from dvc.repo import Repo

from rank_e.errors import RankEError
from stages.runtime.failures import one_line, words

ROOT = Path(__file__).parents[2]


def system(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (RankEError("params.yaml: a problem"), ["params.yaml: a problem"]),
        (system(errno.ENOSPC, "artifacts/x"), ["artifacts/x: no room is left on the disk, ", " MB are free; free"]),
        (system(errno.EROFS, "artifacts/x"), ["artifacts/x: its file system is read-only; mount it for writing"]),
        (system(errno.EACCES, "/locked/x"), ["/locked/x: permission denied; change its folder's mode or owner"]),
        (system(errno.EACCES, "/etc/passwd"), ["/etc/passwd: permission denied; change its mode or owner"]),
        (system(errno.EFBIG, "x"), ["x: the file is larger than is allowed here; raise `ulimit -f`"]),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/a']"), ["'/a': no te"]),
        (system(errno.ENAMETOOLONG, "x" * 300), ["xxx...: the name is too long; shorten it"]),
        (system(errno.ELOOP, "x"), ["x: a link that leads back to itself; remove it"]),
        (system(errno.EMFILE), ["too many open files", "raise `ulimit -n`"]),
        (system(errno.EAGAIN), ["no process or thread can be started", "raise `ulimit -u`"]),
        (RuntimeError("can't start new thread"), ["no process or thread can be started", "raise `ulimit -u`"]),
        (system(errno.ECONNREFUSED), ["Connection refused"]),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), ["a -> b: Invalid cross-device link"]),
        (MemoryError(), ["out of memory: an allocation was refused", "lower batch_size and microbatch_size"]),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), ["out of memory: CUDA out of memory"]),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ["out of memory: [enforce fail]"]),
        (RuntimeError('Error while serializing: Os { code: 28, kind: StorageFull }'), ["no room is left on the disk"]),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), ["raise `ulimit -f`"]),
        (RuntimeError("I/O error: Permission denied (os error 13)"), ["permission denied", "change its mode or owner"]),
        (sqlite3.OperationalError("disk I/O error"), ["a database of DVC or MLflow cannot be used (disk I/O error)"]),
        (sqlite3.DatabaseError("malformed"), [" or /var/tmp/dvc: a database", "remove what is damaged"]),
        (ModuleNotFoundError("No module", name="timm"), [sys.executable, "has no module timm; `make install`"]),
    ],
)  # fmt: skip
def test_what_a_user_can_meet_is_one_line(error: Exception, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    said = words(error)
    assert said is not None and "\n" not in said and len(said) < 400
    for part in parts:
        assert part in said, said


def test_what_nobody_foresaw_is_raised() -> None:
    for error in (TypeError("x"), RuntimeError("size mismatch"), KeyError("x")):
        assert words(error) is None
        with pytest.raises(type(error)), one_line("stage"):
            raise error


def test_a_real_refused_allocation_is_recognised() -> None:
    with pytest.raises(SystemExit, match=r"^policy: out of memory: .*test_one_line\.py, line"), one_line("policy"):
        torch.empty(2**60, dtype=torch.uint8)


def test_every_line_begins_with_the_name() -> None:
    with pytest.raises(SystemExit) as end, one_line("rank-e"):
        raise RankEError("one\ntwo")
    assert end.value.code == "rank-e: one\nrank-e: two"


PROGRAM = "from stages.runtime.failures import one_line\nwith one_line('x'):\n    print('said')"


def test_a_closed_pipe_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("fails", [False, True])
def test_closed_streams_say_nothing_and_no_file_takes_their_place(
    tmp_path: Path, closed: tuple[int, ...], fails: bool
) -> None:
    """As `>&-` in a shell closes them; what a child prints must not land in a file that was opened meanwhile."""
    code = (
        "import subprocess\nfrom rank_e.errors import RankEError\nfrom stages.runtime.failures import one_line\n"
        f"with one_line('x'), open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "    print('said', flush=True)\n    subprocess.run(['sh', '-c', 'echo child; echo child >&2'])\n"
        f"    file.write('whole')\n    if {fails}: raise RankEError('a problem')"
    )
    closing = " ".join(f"{number}>&-" for number in closed)
    shell = ["sh", "-c", f'exec "$0" -c "$1" {closing}', sys.executable, code]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
    assert (tmp_path / "file").read_text() == "whole"
    assert done.returncode == int(fails)
    assert done.stdout == ("" if 1 in closed else "said\nchild\n")
    assert done.stderr == ("" if 2 in closed else "child\n" + "x: a problem\n" * fails)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_to_a_full_disk_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("x: ") and "no room is left on the disk" in line


def test_an_encoding_that_lacks_signs_gets_escapes() -> None:
    code = PROGRAM.replace("said", "5 \\u2212 3") + "; raise OSError(2, 'no', 'b\\udcff')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "5 \\u2212 3\n"
    assert done.stderr == "x: b\\udcff: does not exist; put it there, or correct the path\n"


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml"])
@pytest.mark.parametrize("content", [b"<<<<<<< HEAD\nschema: '2.0'\n", b"[1]\n", b"\xff\0"])
def test_a_file_of_dvc_that_is_damaged_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    """As a conflict of git leaves it, or half a write."""
    Repo.init(str(tmp_path), no_scm=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: 'true'\n    outs: [a]\n")
    (tmp_path / name).write_bytes(content)
    with Repo(str(tmp_path)) as repo, pytest.raises(DvcException) as error:
        any(stage.status() for stage in repo.index.stages)
    line = words(error.value) or ""
    assert name in line and "DVC says: " in line and "take it back from git" in line and "\n" not in line
