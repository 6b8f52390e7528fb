"""How a stage ends that is asked to: SIGTERM and Ctrl-C let a loop keep its state first, all else ends at once.

Python looks at signals between two of its instructions, which a library's call may keep apart for long; so a thread,
woken by the system itself, ends the stage when its time is over. What was saved before is kept: a state is replaced
whole.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

LIMIT = 9.0
"""Seconds that a stage gets to finish its step and to save its state."""
KINDS = (signal.SIGTERM, signal.SIGINT)


class Termination:
    """Whether this process's stage was asked to end, and by what."""

    def __init__(self) -> None:
        self._title = ""
        self._signal: signal.Signals | None = None
        self._loops = 0
        self._leaving = False
        self._wake: int | None = None

    @property
    def asked(self) -> bool:
        """Whether the stage was asked to end: a loop saves its state, then its next step is not begun."""
        return self._signal is not None

    def listen(self, title: str) -> None:
        """From now on SIGTERM and Ctrl-C mean this; called in the main thread of a process when a stage begins."""
        self._title, self._signal, self._loops, self._leaving = title, None, 0, False
        if self._wake is None:
            read, self._wake = os.pipe()
            os.set_blocking(self._wake, False)
            threading.Thread(target=self._insist, args=(read,), daemon=True).start()
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for kind in KINDS:
            signal.signal(kind, self._ask)

    @contextmanager
    def loop(self) -> Iterator[None]:
        """The block is a loop that calls `check` after each step."""
        self._loops += 1
        try:
            yield
        finally:
            self._loops -= 1

    def check(self) -> None:
        """A step is over, and its state saved if there is one: SystemExit if the stage was asked to end."""
        if self._signal is not None:
            self._leave(self._signal)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number)
        if self._loops == 0 and not self._leaving:  # a second signal does not disturb what the first one ends
            self._leave(self._signal)

    def _leave(self, kind: signal.Signals) -> NoReturn:
        self._leaving = True
        # Not print: the signal may have come within one.
        os.write(2, f"{self._title}: stopped by {kind.name}; run again: what is saved is kept\n".encode())
        raise SystemExit(128 + kind)

    def _insist(self, woken: int) -> None:
        """In a thread: the end, LIMIT seconds after the first signal, whatever the main thread does."""
        while (number := os.read(woken, 1)[0]) not in KINDS:
            pass
        time.sleep(LIMIT)
        os.write(2, f"{self._title}: not done {LIMIT:g} s after the signal: what was saved before is kept\n".encode())
        os._exit(128 + number)


TERMINATION = Termination()
"""This process's."""
