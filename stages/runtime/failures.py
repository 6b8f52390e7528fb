"""How a command or a stage ends for what its user can meet: one line with the thing, the place and the fix.

What nobody foresaw keeps its traceback: it is for whoever mends the code.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from rank_e.errors import RankEError

AGAIN = "and run again: what is done is kept"
FIXES = {
    errno.ENOSPC: ("no room is left on the disk", f"free some, {AGAIN}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some, {AGAIN}"),
    errno.EROFS: ("its file system is read-only", f"mount it for writing, {AGAIN}"),
    errno.EACCES: ("permission denied", f"change its mode or owner, {AGAIN}"),
    errno.EPERM: ("not permitted", f"change its mode or owner, {AGAIN}"),
    errno.ENAMETOOLONG: ("the name is too long", "shorten it"),
    errno.ELOOP: ("a link that leads back to itself", "remove it"),
    errno.EMFILE: ("too many open files", f"raise `ulimit -n`, {AGAIN}"),
    errno.ENFILE: ("too many open files on this machine", f"close some, {AGAIN}"),
    errno.EAGAIN: ("no process or thread can be started", f"raise `ulimit -u`, or end what else runs, {AGAIN}"),
    errno.ENOMEM: ("not enough memory", f"end what else runs, {AGAIN}"),
    errno.EEXIST: ("something is there already", "remove it, or name another place"),
    errno.ENOENT: ("does not exist", "put it there, or correct the path"),
    errno.ENOTDIR: ("a part of the path is no folder", "remove it, or correct the path"),
    errno.EISDIR: ("is a folder, not a file", "remove it, or correct the path"),
    errno.EFBIG: ("the file is larger than is allowed here", f"raise `ulimit -f`, {AGAIN}"),
    errno.EIO: ("the device reports an error", "look at the disk"),
}
"""What the system's errors are called here, and what helps."""
FULL = ("No space left on device", "StorageFull", "disk is full")
"""How libraries say that the disk is full where they raise no OSError."""
RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust end what they say of a system's error."""
THREADLESS = "can't start new thread"
"""How Python says that a limit of processes is reached."""
DATABASE = "look at both for room, mode and `ulimit -f`, remove what is damaged"
STARVED = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
"""How libraries say that there is no memory, where they raise no MemoryError."""


def words(error: BaseException) -> str | None:
    """The line for an error that a user can meet (several for a RankEError of several); None for any other."""
    if isinstance(error, RankEError):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return f"{sys.executable} has no module {error.name}; `make install`, then use .venv/bin, or correct the name"
    starved = isinstance(error, RuntimeError) and any(sign in text for sign in STARVED)
    if isinstance(error, MemoryError) or starved:
        fewer = "lower batch_size and microbatch_size in params.yaml, or `rank-e run --jobs 1`"
        return f"out of memory: {_cut(text) or 'an allocation was refused'}{_place(error)}; {fewer}"
    if isinstance(error, FileNotFoundError) and text.endswith("]") and "No usable temporary directory" in text:
        folders = text[text.index("[") + 1 : -1]  # what Python raises when each of them is full, read-only or not there
        return f"{_cut(folders)}: no temporary file can be written there; free some room, or set TMPDIR, {AGAIN}"
    if isinstance(error, OSError) and error.errno is not None:
        what, fix = FIXES.get(error.errno, (error.strerror or text, f"look there, {AGAIN}"))
        room = f", {_free(error)} are free" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        names = (name for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
        named = " -> ".join(map(os.fsdecode, names))
        if error.errno in (errno.EACCES, errno.EPERM) and named and not os.path.lexists(named):
            fix = fix.replace("its", "its folder's", 1)  # there is nothing yet whose mode could be changed
        return f"{_cut(named) or str(Path.cwd())}: {what}{room}{'' if named else _place(error)}; {fix}"
    if isinstance(error, RuntimeError) and text.startswith(THREADLESS):
        what, fix = FIXES[errno.EAGAIN]
        return f"{Path.cwd()}: {what}{_place(error)}; {fix}"
    if any(sign in text for sign in FULL):
        what, fix = FIXES[errno.ENOSPC]
        return f"{Path.cwd()}: {what}, {_free(error)} are free ({_cut(text)}); {fix}"
    if (number := RUST.search(text)) and int(number[1]) in FIXES:
        what, fix = FIXES[int(number[1])]
        return f"{Path.cwd()}: {what} ({_cut(text)}){_place(error)}; {fix}"
    if any((kind.__module__, kind.__name__) == ("sqlite3", "Error") for kind in type(error).__mro__):
        place = os.environ.get("DVC_SITE_CACHE_DIR", "/var/tmp/dvc")
        return (
            f"{Path.cwd()} or {place}: a database of DVC or MLflow cannot be used ({_cut(text)}); {DATABASE}, {AGAIN}"
        )
    if any((kind.__module__, kind.__name__) == ("dvc.exceptions", "DvcException") for kind in type(error).__mro__):
        return f"{Path.cwd()}: DVC says: {_cut(text)}; correct the file, or take it back from git, {AGAIN}"
    return None


def _cut(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


def _place(error: BaseException) -> str:
    """The innermost line of code that is not a library's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _free(error: BaseException) -> str:
    """The free room where the error's file lies, of the file system that the nearest folder is on."""
    name = getattr(error, "filename", None)
    place = Path(os.fsdecode(name)).absolute() if isinstance(name, str | bytes) else Path.cwd()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    return f"{shutil.disk_usage(there).free / 1e6:,.1f} MB"


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
    """The block is a whole program: its exit status is 1 after an error that its user can meet, said by `name`.

    130 after Ctrl-C and a line that says so, 141 when nobody reads its output any more, as in `... | head`. Signs that
    the terminal's encoding lacks are written as escapes. A stream that was closed, as by `>&-`, says nothing.
    """
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:  # here, where it can be said, not at Python's end
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print(f"{name}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        lines = words(error)
        if lines is None:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        sys.exit("\n".join(f"{name}: {line}" for line in lines.splitlines()))


def _open_closed() -> None:
    """The null device where a standard stream was closed: the next file that is opened would get its number.

    What processes that are started here print would then be written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null == number:
                os.set_inheritable(number, True)  # dup2 leaves it as it is
            else:
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _drop_output() -> None:
    """What could not be written is not tried again at Python's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
