"""A process that has imported the heavy libraries once and forks a ready child for every stage.

Importing torch and open_clip takes seconds, a run has dozens of stages. `python -m stages.runtime.warm SOCKET` imports
libraries, nothing that computes for a stage nor anything on a GPU, so a fork is what a fresh process would be after its
imports. It ends when its standard input closes; a stage ends when whoever asked for it goes away.

`warm_stages` starts it for a run, `ask` has it run one stage, `Server` is the process itself.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from rank_e.errors import RankEError
from stages.runtime.process import run_module

SOCKET = "RANK_E_WARM"
"""The environment variable that names the server's socket."""
LIBRARIES = ("torch", "torch._dynamo", "pandas", "pyarrow.parquet", "safetensors.torch", "pydantic", "rich.progress")
PATIENCE = 30.0
"""Seconds that the process gets to open its socket, and to end."""
LONGEST = 103 - len("/rank-e-12345678/stages.sock")
"""Bytes of the longest folder that a socket's own folder can lie in: macOS takes 104 in all, Linux 108."""
_HEAD = struct.Struct("!I")
_CODE = struct.Struct("!i")


@contextlib.contextmanager
def warm_stages(project: Path) -> Iterator[None]:
    """While the block runs, every `python -m stages NAME` started from here runs in a fork of one warm process."""
    # The system takes 104 bytes for the path of a socket, the end of a string among them; TMPDIR may be longer.
    short = None if len(os.fsencode(tempfile.gettempdir())) <= LONGEST else "/tmp"
    with tempfile.TemporaryDirectory(prefix="rank-e-", dir=short) as folder:
        path = Path(folder) / "stages.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.runtime.warm", str(path)],
            cwd=project,
            stdin=subprocess.PIPE,  # its closing, also by our death, ends the process
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            _wait_for(path, process)
            os.environ[SOCKET] = str(path)
            yield
        finally:
            os.environ.pop(SOCKET, None)
            process.stdin.close()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RankEError(f"the warm process did not start (exit code {process.poll()}): see its output above")
        time.sleep(0.01)


def ask(server: str, words: list[str]) -> int:
    """Have the server run `stages.<words[0]>` with these arguments, this environment, folder and output; its exit code.

    Exits with an error if the server is gone.
    """
    request = json.dumps({"words": words, "cwd": str(Path.cwd()), "environ": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(server)
            socket.send_fds(connection, [_HEAD.pack(len(request))], [0, 1, 2])
            connection.sendall(request)
            code = _exactly(connection, _CODE.size)
        except (OSError, EOFError) as error:
            sys.exit(f"{words[0]}: the warm process at {server} is gone ({error}): run again, or unset {SOCKET}")
    return int(_CODE.unpack(code)[0])


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError("it closed the connection")
        data += part
    return data


class Server:
    """Forks a child for each request, reports its exit code, ends it when its connection closes."""

    def __init__(self, path: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(0, selectors.EVENT_READ, self._close)
        self.open = True

    def run(self) -> None:
        """Serve until standard input closes."""
        while self.open:
            for key, _ in self.selector.select():
                key.data()

    def _close(self) -> None:
        self.open = bool(os.read(0, 1))

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        try:
            head, files, _, _ = socket.recv_fds(connection, _HEAD.size, 3)
            request = json.loads(_exactly(connection, _HEAD.unpack(head)[0]))
        except (OSError, EOFError, struct.error):  # it went away before it had asked
            connection.close()
            return
        child = os.fork()
        if child == 0:
            self._become_stage(request, files)
        for file in files:
            os.close(file)
        watch = os.pidfd_open(child)
        self.selector.register(watch, selectors.EVENT_READ, lambda: self._ended(child, watch, connection))
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._abandoned(child, connection))

    def _ended(self, child: int, watch: int, connection: socket.socket) -> None:
        """The stage is over: tell whoever asked."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.selector.unregister(watch)
        os.close(watch)
        with contextlib.suppress(OSError, KeyError):
            self.selector.unregister(connection)
            connection.sendall(_CODE.pack(code if code >= 0 else 128 - code))
        connection.close()

    def _abandoned(self, child: int, connection: socket.socket) -> None:
        """Whoever asked is gone: the stage must not go on writing. It can be killed at any instant."""
        if connection.fileno() == -1:  # the stage ended in the same instant: `_ended` has closed it
            return
        self.selector.unregister(connection)
        os.kill(child, signal.SIGKILL)

    def _become_stage(self, request: dict[str, Any], files: list[int]) -> None:
        """In the child: take the asker's output, folder and environment, run the stage, and never return."""
        code: Any = 1
        try:
            self.selector.close()
            self.listener.close()
            for target, file in enumerate(files):
                os.dup2(file, target)
                os.close(file)
            # Opened anew: those of the server remember another kind of file, and fail to seek in a pipe.
            sys.stdout, sys.stderr = (open(target, "w", buffering=1, closefd=False) for target in (1, 2))  # noqa: SIM115
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["environ"])
            name, *arguments = request["words"]
            run_module(name, arguments)
            code = 0
        except SystemExit as leaving:
            code = leaving.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)


def main() -> None:
    """Listen at once, so that stages can queue; import; serve."""
    server = Server(sys.argv[1])
    for library in LIBRARIES:
        import_module(library)
    import_module("rank_e.io.torchvision_ops").import_open_clip()
    server.run()


if __name__ == "__main__":
    main()
