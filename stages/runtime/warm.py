"""A run's warm process (`stages.runtime.server`): how it is started and replaced, and how a stage is asked of it.

The run itself owns the socket that stages connect to: while a warm process that was killed is replaced, they queue. Its
name is no file's, so nothing of it is left behind. Linux alone has such names, and only there is there a warm process.

`warm_stages` starts it for a run, `ask` has it run one stage.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.runtime.wire import receive_code, require_own, send_request

SOCKET = "RANK_E_WARM"
"""The environment variable that names the socket, as @NAME."""
POLL = 0.2
"""Seconds between looks whether the run is over before its first stage."""
PATIENCE = 30.0
"""Seconds that the process gets to end."""
QUICK = 60.0
"""A warm process that lives shorter dies of what the next will die of too, unless it was killed."""
TRIES = 3
"""Warm processes that may die so one after another, and how often a stage is begun whose warm process dies."""
KILLED = (-signal.SIGKILL, -signal.SIGTERM)


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
            [sys.executable, "-m", "stages.runtime.server", str(self._listener.fileno())],
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
        require_own(connection)
        send_request(connection, request, [0, 1, 2])
        signal.signal(signal.SIGTERM, terminate)
        return receive_code(connection)
