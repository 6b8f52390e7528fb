"""Which groups of nodes are done next, by whom: some at a time, the first whose turn has come before all others.

Each arm and seed has workers of its own, so that its stages show up in its own subflow; all of them ask one board.
"""

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context

from pipeline.graph import Chain, NodeGroup


class Board:
    """Hands out groups in their order, at most `jobs` at a time, each when all that it waits for are done.

    What waits for a failed group is never handed out, but `blocked`; everything else is. Nothing is while the run is
    `stopping`.
    """

    def __init__(self, groups: Sequence[NodeGroup], jobs: int, stopping: Callable[[], bool]) -> None:
        self.failed: list[str] = []
        self.blocked: list[NodeGroup] = []
        self.jobs, self._waiting, self._stopping = jobs, list(groups), stopping
        self._running, self._done = set[str](), set[str]()
        self._changed = threading.Condition()

    def take(self, chain: Chain | None) -> NodeGroup | None:
        """The next group of a chain, as soon as it is the first whose turn has come; None when it has none left."""
        with self._changed:
            while not self._stopping() and any(group.chain == chain for group in self._waiting):
                group = self._first()
                if group is not None and group.chain == chain:
                    self._waiting.remove(group)
                    self._running.add(group.name)
                    self._changed.notify_all()  # there may be room for another one
                    return group
                self._changed.wait(1.0)  # a run that is stopped notifies nobody
            return None

    def end(self, group: NodeGroup, succeeded: bool) -> None:
        """A group is over."""
        with self._changed:
            self._running.discard(group.name)
            if succeeded:
                self._done.add(group.name)
            else:
                self._fail(group)
            self._changed.notify_all()

    def abandon(self, chain: Chain | None) -> None:
        """Nobody works for a chain any more: what it has left fails."""
        with self._changed:
            for group in [group for group in self._waiting if group.chain == chain]:
                if group in self._waiting:  # it did not wait for one that has failed here
                    self._waiting.remove(group)
                    self._fail(group)
            self._changed.notify_all()

    def _first(self) -> NodeGroup | None:
        if len(self._running) >= self.jobs:
            return None
        return next((group for group in self._waiting if group.waits <= self._done), None)

    def _fail(self, group: NodeGroup) -> None:
        self.failed.append(group.name)
        lost = {group.name}
        while blocked := [other for other in self._waiting if other.waits & lost]:
            lost |= {other.name for other in blocked}
            self.blocked += blocked
            self._waiting = [other for other in self._waiting if other not in blocked]


def in_threads(works: list[Callable[[], None]]) -> None:
    """Do all of these side by side, each in this run's context, and wait for them."""
    threads = [threading.Thread(target=copy_context().run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C: the stages are being ended, and the tasks say so
        for thread in threads:
            thread.join()
        raise
