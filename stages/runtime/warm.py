"""A process that has imported the heavy libraries once and forks a ready child for every stage.

Importing torch and open_clip takes seconds, a run has dozens of stages. `python -m stages.runtime.warm FD` imports
libraries, nothing that computes for a stage nor anything on a GPU, so a fork is what a fresh process would be after its
imports. It ends when its standard input closes; a stage is asked to end when whoever asked for it goes away.

The run itself owns the socket that stages connect to: while a warm process that was killed is replaced, they queue. Its
name is no file's, so nothing of it is left behind. Linux alone has such names, and only there is there a warm process.

`warm_stages` starts it for a run, `ask` has it run one stage, `Server` is the process itself.
"""

import contextlib
import json
import os
import secrets
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.runtime.process import follow_parent, run_module

SOCKET = "RANK_E_WARM"
"""The environment variable that names the socket, as @NAME."""
LIBRARIES = ("torch", "torch._dynamo", "pandas", "pyarrow.parquet", "safetensors.torch", "pydantic", "rich.progress")
POLL = 0.2
"""Seconds between looks whether the run is over before its first stage."""
PATIENCE = 30.0
"""Seconds that the process gets to end."""
GRACE = 10.0
"""Seconds that a stage gets to end when whoever asked for it has gone."""
QUICK = 60.0
"""A warm process that lives shorter dies of what the next will die of too, unless it was killed."""
TRIES = 3
"""Warm processes that may die so one after another, and how often a stage is begun whose warm process dies."""
KILLED = (-signal.SIGKILL, -signal.SIGTERM)
_HEAD = struct.Struct("!I")
_CODE = struct.Struct("!i")
_PEER = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED


@contextlib.contextmanager
def warm_stages(project: Path, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """While the block runs, every `python -m stages NAME` started from here runs in a fork of one warm process.

    It is replaced if it dies, but not while the run is `stopping`.
    """
    if sys.platform != "linux":
        yield
        return
    with socket.socket(socket.AF_UNIX) as listener:
        name = f"rank-e-{secrets.token_hex(8)}"
        listener.bind(f"\0{name}")
        listener.listen(64)
        warm = Warm(project, listener, stopping)
        os.environ[SOCKET] = f"@{name}"
        try:
            yield
        finally:
            os.environ.pop(SOCKET, None)
            warm.close()


class Warm:
    """The warm process of a run, from its first stage on; one that dies is replaced, and says so."""

    def __init__(self, project: Path, listener: socket.socket, stopping: Callable[[], bool]) -> None:
        self._project, self._listener, self._stopping = project, listener, stopping
        self._closing, self._lock = False, threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _asked(self) -> bool:
        """Wait for the first stage; False if the run ends without one."""
        while not self._closing:
            if select.select([self._listener], [], [], POLL)[0]:
                return True
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "stages.runtime.warm", str(self._listener.fileno())],
            cwd=self._project,
            stdin=subprocess.PIPE,  # its closing, also by our death, ends the process
            pass_fds=[self._listener.fileno()],
            start_new_session=True,
        )

    def _watch(self) -> None:
        quick, asked = 0, self._asked()
        with self._lock:
            if not asked or self._closing:
                return
            process = self.process = self._start()
        while True:
            began = time.monotonic()
            code = process.wait()
            quick = quick + 1 if code not in KILLED and time.monotonic() - began < QUICK else 0
            with self._lock:
                if self._closing or self._stopping():
                    return
                assert process.stdin is not None
                process.stdin.close()
                if quick == TRIES:
                    print(f"the warm process ended with {code} again: see its output above", file=sys.stderr)
                    self._listener.close()  # whoever connects or waits learns it
                    return
                print(f"the warm process ended with {code}: another takes its place", file=sys.stderr)
                process = self.process = self._start()

    def close(self) -> None:
        """End it by closing its standard input; by force after PATIENCE seconds."""
        with self._lock:
            self._closing = True
            process = self.process
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        self._watching.join()


def ask(server: str, words: list[str]) -> int:
    """Have the server run `stages.<words[0]>` with these arguments, this environment, folder and output; its exit code.

    SIGTERM is the stage's: this process waits for its end. A stage that dies with its warm process begins again in the
    next one. Exits with an error if there is none.
    """
    request = json.dumps({"words": words, "cwd": str(Path.cwd()), "environ": dict(os.environ)}).encode()
    terminated = threading.Event()
    error: Exception | None = None
    for _ in range(TRIES):
        try:
            return _ask_once(server, request, terminated)
        except (OSError, EOFError) as broken:
            error = broken
        if terminated.is_set():
            return 128 + signal.SIGTERM
        if isinstance(error, ConnectionRefusedError):
            break
        print(f"{words[0]}: its warm process ended: it begins again in another", file=sys.stderr)
    sys.exit(f"{words[0]}: the warm process at {server} is gone ({error}): run again, or unset {SOCKET}")


def _ask_once(server: str, request: bytes, terminated: threading.Event) -> int:
    """The stage's exit code; OSError or EOFError if its warm process ends before it."""
    with socket.socket(socket.AF_UNIX) as connection:

        def terminate(*_: object) -> None:
            terminated.set()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)  # the server's sign to end the stage

        connection.connect(f"\0{server.removeprefix('@')}")
        _require_own(connection)
        socket.send_fds(connection, [_HEAD.pack(len(request))], [0, 1, 2])
        connection.sendall(request)
        signal.signal(signal.SIGTERM, terminate)
        return int(_CODE.unpack(_exactly(connection, _CODE.size))[0])


def _require_own(connection: socket.socket) -> None:
    """PermissionError if another user is at the other end: names of sockets have no owner."""
    peer = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if peer[1] != os.getuid():
        raise PermissionError(f"it is another user's: uid {peer[1]}")


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

    def __init__(self, listener: socket.socket) -> None:
        self.pid = os.getpid()
        self.listener = listener
        self.overdue: dict[int, float] = {}  # children that were asked to end, and when they must have
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(0, selectors.EVENT_READ, self._close)
        self.open = True

    def run(self) -> None:
        """Serve until standard input closes."""
        while self.open:
            for key, _ in self.selector.select(0.5 if self.overdue else None):
                key.data()
            now = time.monotonic()
            for child in [child for child, moment in self.overdue.items() if moment < now]:
                del self.overdue[child]
                os.kill(child, signal.SIGKILL)

    def _close(self) -> None:
        self.open = bool(os.read(0, 1))

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        try:
            _require_own(connection)
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
        self.overdue.pop(child, None)
        self.selector.unregister(watch)
        os.close(watch)
        with contextlib.suppress(KeyError):  # it was abandoned
            self.selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(_CODE.pack(code if code >= 0 else 128 - code))
        connection.close()

    def _abandoned(self, child: int, connection: socket.socket) -> None:
        """Whoever asked is gone, or was told to end: the stage saves what it can, and ends, of itself or by force."""
        if connection.fileno() == -1:  # the stage ended in the same instant: `_ended` has closed it
            return
        self.selector.unregister(connection)
        self.overdue[child] = time.monotonic() + GRACE
        os.kill(child, signal.SIGTERM)

    def _become_stage(self, request: dict[str, Any], files: list[int]) -> None:
        """In the child: take the asker's output, folder and environment, run the stage, and never return."""
        code: Any = 1
        try:
            follow_parent(self.pid)
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
    """Import, then serve those who have queued up at the socket."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(listener.fileno(), False)
    for library in LIBRARIES:
        import_module(library)
    import_module("rank_e.io.torchvision_ops").import_open_clip()
    Server(listener).run()


if __name__ == "__main__":
    main()
