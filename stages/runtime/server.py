"""A process that has imported the heavy libraries once and forks a ready child for every stage.

Importing torch and open_clip takes seconds, a run has dozens of stages. `python -m stages.runtime.server FD` imports
libraries, nothing that computes for a stage nor anything on a GPU, so a fork is what a fresh process would be after its
imports. Stages on a GPU go one after another to a fork that stays (`stages.runtime.resident`); what comes meanwhile
gets a fork of its own. The process ends when its standard input closes; a stage is asked to end when whoever asked for
it goes away.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from stages.runtime.process import follow_parent
from stages.runtime.resident import CHANGED, run_request, serve, settings_of
from stages.runtime.wire import receive_code, receive_request, require_own, send_code, send_request

LIBRARIES = ("torch", "torch._dynamo", "pandas", "pyarrow.parquet", "safetensors.torch", "pydantic", "rich.progress")
GRACE = 10.0
"""Seconds that a stage gets to end when whoever asked for it has gone."""


@dataclass
class Asked:
    """A stage that was asked for: whoever asked, in which form, and the asker's open files while they may be needed."""

    connection: socket.socket
    request: bytes
    files: list[int]

    def close_files(self) -> None:
        for file in self.files:
            os.close(file)
        self.files = []


@dataclass
class Resident:
    """A child that stays: its settings, the channel to it, and the stage that it works on."""

    settings: str
    pid: int
    channel: socket.socket
    work: Asked | None = None


class Server:
    """Forks a child for each request, reports its exit code, ends it when its connection closes."""

    def __init__(self, listener: socket.socket) -> None:
        self.pid = os.getpid()
        self.listener = listener
        self.overdue: dict[int, float] = {}  # children that were asked to end, and when they must have
        self.resident: Resident | None = None
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
            require_own(connection)
            asked = Asked(connection, *receive_request(connection))
        except (OSError, EOFError):  # it went away before it had asked
            connection.close()
            return
        settings = settings_of(asked.request)
        if settings and (self.resident is None or self.resident.work is None):
            self._give(settings, asked)
        else:
            self._fork(asked)

    def _fork(self, asked: Asked) -> None:
        """A child of its own for the stage."""
        child = self._child(lambda: os._exit(run_request(asked.request, asked.files)), asked)
        asked.close_files()
        self._watch(child, lambda: asked.connection)
        self._listen(child, asked.connection)

    def _child(self, work: Callable[[], object], own: Asked | None = None) -> int:
        """Fork: the child runs `work` and ends, with no open files of any stage but its `own`."""
        child = os.fork()
        if child == 0:
            try:
                follow_parent(self.pid)
                self.selector.close()
                self.listener.close()
                if (resident := self.resident) is not None:
                    resident.channel.close()
                    if resident.work is not None and resident.work is not own:
                        resident.work.close_files()
                work()
            finally:
                os._exit(1)
        return child

    def _watch(self, child: int, asker: Callable[[], socket.socket | None]) -> None:
        """Hear of the child's end; `asker` is then told, if there is one."""
        watch = os.pidfd_open(child)
        self.selector.register(watch, selectors.EVENT_READ, lambda: self._ended(child, watch, asker()))

    def _listen(self, child: int, connection: socket.socket) -> None:
        """Hear of whoever asked going away."""
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._abandoned(child, connection))

    def _ended(self, child: int, watch: int, connection: socket.socket | None) -> None:
        """The child is over: tell whoever asked."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.overdue.pop(child, None)
        self.selector.unregister(watch)
        os.close(watch)
        if connection is not None:
            self._answer(connection, code if code >= 0 else 128 - code)

    def _answer(self, connection: socket.socket, code: int) -> None:
        with contextlib.suppress(KeyError):  # it was abandoned
            self.selector.unregister(connection)
        with contextlib.suppress(OSError):
            send_code(connection, code)
        connection.close()

    def _abandoned(self, child: int, connection: socket.socket) -> None:
        """Whoever asked is gone, or was told to end: the stage saves what it can, and ends, of itself or by force."""
        if connection.fileno() == -1:  # the stage ended in the same instant: `_ended` has closed it
            return
        self.selector.unregister(connection)
        self.overdue[child] = time.monotonic() + GRACE
        os.kill(child, signal.SIGTERM)

    def _give(self, settings: str, asked: Asked) -> None:
        """The stage to the child that stays, which is started, or started anew, where it is not there as it must be."""
        resident = self.resident
        if resident is None or resident.settings != settings:
            self._dismiss()
            resident = self.resident = self._start(settings, asked)
        resident.work = asked
        self._listen(resident.pid, asked.connection)
        with contextlib.suppress(OSError):  # it has died: `_ended` tells whoever asked
            send_request(resident.channel, asked.request, asked.files)

    def _start(self, settings: str, asked: Asked) -> Resident:
        ours, theirs = socket.socketpair()

        def work() -> None:
            ours.close()
            asked.close_files()  # they come once more, through the channel
            serve(theirs, self.pid)

        resident = Resident(settings, self._child(work), ours)
        theirs.close()
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._heard(resident))
        self._watch(resident.pid, lambda: self._lost(resident))
        return resident

    def _heard(self, resident: Resident) -> None:
        """The child that stays has done its stage, or would do it with code that has changed."""
        try:
            code = receive_code(resident.channel)
        except (EOFError, OSError):  # it is over: `_ended` knows with which code
            self._forget(resident)
            return
        asked, resident.work = resident.work, None
        assert asked is not None
        self.overdue.pop(resident.pid, None)
        if code != 0:
            self._forget(resident)
        if code == CHANGED:
            with contextlib.suppress(KeyError):
                self.selector.unregister(asked.connection)
            self._give(resident.settings, asked)
            return
        asked.close_files()
        self._answer(asked.connection, code)

    def _forget(self, resident: Resident) -> None:
        """It gets no more stages, and ends when it finds its channel closed."""
        if self.resident is resident:
            self.resident = None
        if resident.channel.fileno() != -1:
            self.selector.unregister(resident.channel)
            resident.channel.close()

    def _lost(self, resident: Resident) -> socket.socket | None:
        """It has ended: whoever waits for a stage of it."""
        self._forget(resident)
        asked, resident.work = resident.work, None
        if asked is None:
            return None
        asked.close_files()
        return asked.connection

    def _dismiss(self) -> None:
        if self.resident is not None:
            self._forget(self.resident)


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
