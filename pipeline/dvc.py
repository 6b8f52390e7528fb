"""DVC as a subprocess: several nodes of the graph in one call, each seen by name, none left running.

A call of DVC costs about a second, so one process takes all nodes of a group; its output tells which one it is at. It
leads a process group of its own, which is ended when anything goes wrong: a stage must never outlive its run.
"""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from pipeline.between import BETWEEN
from pipeline.graph import Node
from rank_e.errors import RankEError
from stages.runtime.process import REFUSED
from stages.runtime.usage import read_usage

HEAD = re.compile(r"^(Running stage|Stage) '([^']+)'(:| didn't change| is cached)")
GRACE = 10.0
"""Seconds that a process group gets to end by itself."""
TAIL = 12
"""Lines of output that an error shows."""
NOISE = (
    "Updating lock file",
    "Generating lock file",
    "Use `dvc push`",
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
)
"""What DVC says after every stage."""
NOT_ITS_OWN = ("ERROR: failed to reproduce", "Running stage", "> ")
"""How DVC's lines about a stage begin."""
WAYS = {":": "ran", " didn't change": "unchanged", " is cached": "restored"}

_running: set["Repro"] = set()
_lock = threading.Lock()
_stopping = threading.Event()
_depth = 0
_leave: Callable[[int], NoReturn] | None = None


class StageError(RankEError):
    """A stage ended with an error; the message ends with its last lines, of which `cause` is the stage's own last."""

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause or message.splitlines()[0]


class RefusedError(StageError):
    """A stage ended with an error that no other try would mend: wrong params, damaged data, a number not finite."""


@dataclass(frozen=True)
class Timing:
    """What a stage cost: wall seconds, and peak resident MB of its process.

    The peak is None if it did not run, or if it is not one of this project's stages, which write it down.
    """

    stage: str
    label: str
    outcome: str
    seconds: float
    peak_rss_mb: float | None


def environment() -> dict[str, str]:
    """The child's environment: this Python for the stages too, unbuffered output (so that lines keep their order)."""
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    given = {"PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1", "RANK_E_PYTHON": sys.executable}
    return {**os.environ, **given, "PATH": os.pathsep.join(paths)}


def command(addresses: Sequence[str]) -> list[str]:
    """`dvc repro` for exactly these stages; waiting for DVC's lock lets several calls work side by side."""
    words = ["repro", "--single-item", *(option for each in BETWEEN for option in each.options)]
    return [sys.executable, "-m", "pipeline.dvc_restore", "--wait-for-lock", *words, *addresses]


class Repro:
    """Nodes reproduced one after another by one DVC process; `run` returns when the given one has ended.

    After an error, the next `run` starts a new process with the nodes that are left: a retry.
    """

    def __init__(self, project: Path, nodes: Sequence[Node]) -> None:
        self.project = project
        self.left = list(nodes)
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[tuple[float, str | None]] = queue.Queue()
        self._held: tuple[float, str | None] | None = None

    def run(self, node: Node, on_line: Callable[[str], None]) -> Timing:
        """Wait for `node`, the first one left; its output goes to `on_line`; StageError if it fails."""
        if not self.left or self.left[0] != node:
            raise StageError(f"{node.label}: its turn has not come: {[item.label for item in self.left]}")
        try:
            timing = self._run(node, on_line)
        except BaseException:
            self.close()
            raise
        self.left.pop(0)
        if not self.left:
            self.close()
        record(self.project, timing)
        for each in BETWEEN:
            each.after(node)
        return timing

    def _run(self, node: Node, on_line: Callable[[str], None]) -> Timing:
        process = self._process or self._start()
        following = {item.address for item in self.left[1:]}
        began, outcome, tail = time.monotonic(), "", [""]
        while True:
            moment, line = self._next()
            if line is None:
                code = process.wait()
                if code != 0 or not outcome:
                    shown = "\n".join(tail[-TAIL:]).strip()
                    error = RefusedError if shown.endswith(f"exited with {REFUSED}") else StageError
                    own = [line for line in tail if line.strip() and not line.startswith(NOT_ITS_OWN)] or tail
                    raise error(f"{node.label} failed (dvc ended with {code}):\n{shown}", "".join(own[-1:]))
                break
            head = HEAD.match(line)
            if head and head.group(2) == node.address:
                began, outcome = moment, WAYS[head.group(3)]
            elif head and head.group(2) in following:
                self._held = (moment, line)
                break
            if line.strip() and not line.strip().startswith(NOISE):
                tail.append(line)
                on_line(line)
        peak = peak_memory(self.project, node) if outcome == "ran" else None
        return Timing(node.address, node.label, outcome, round(moment - began, 3), peak)

    def _next(self) -> tuple[float, str | None]:
        if self._held is not None:
            held, self._held = self._held, None
            return held
        return self._lines.get()

    def _start(self) -> subprocess.Popen[str]:
        if _stopping.is_set():
            raise StageError(f"{self.left[0].label}: the run was stopped")
        for each in BETWEEN:
            each.before(self.left)
        self._lines, self._held = queue.Queue(), None
        process = subprocess.Popen(
            command([item.address for item in self.left]),
            cwd=self.project,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._process = process
        with _lock:
            _running.add(self)
        threading.Thread(target=self._read, args=(process, self._lines), daemon=True).start()
        return process

    def _read(self, process: subprocess.Popen[str], lines: queue.Queue) -> None:
        """Stamp each line when it comes, not when somebody has time to look at it."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put((time.monotonic(), line.rstrip()))
        lines.put((time.monotonic(), None))

    def terminate(self) -> None:
        """Ask the process group to end, if it runs."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End the process group, if it still runs: ask first, then insist."""
        process, self._process = self._process, None
        with _lock:
            _running.discard(self)
        if process is None:
            return
        end_group(process)


def peak_memory(project: Path, node: Node) -> float | None:
    """The peak resident memory in MB that the node's process wrote down when it ended; None if it does not."""
    place = project / ".rank-e" / "usage" / f"{node.label.replace(' ', '-')}.json"
    return float(usage["peak_rss_mb"]) if (usage := read_usage(place, "peak_rss_mb")) else None


def end_group(process: subprocess.Popen) -> None:
    """SIGTERM to the process's group, SIGKILL after a grace; returns when all of it is gone, stages too."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        deadline = time.monotonic() + GRACE
        while _lives(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()


def _lives(leader: subprocess.Popen) -> bool:
    """Whether a process of this group has not ended; those that nobody buries have."""
    if leader.poll() is None:
        return True
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader.pid and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def stopping() -> bool:
    """Whether the run is being stopped, so that nothing should be tried again."""
    return _stopping.is_set()


def stop_all() -> None:
    """End every DVC process that this one started, and start no other."""
    _stopping.set()
    with _lock:
        running = list(_running)
    for repro in running:  # all at once, since each takes its time
        repro.terminate()
    for repro in running:
        repro.close()


@contextlib.contextmanager
def ending_children(leave: Callable[[int], NoReturn] | None = None) -> Iterator[None]:
    """While the block runs, SIGTERM and Ctrl-C end every DVC process before anything else; so does its end.

    With `leave` a signal means that: it ends all that there is, and this process. Blocks nest: Prefect sets a handler
    of its own when a flow begins, so the flow opens a second one inside it, which does as the first.
    """
    previous: dict[int, Any] = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _leave is not None:
            _stopping.set()
            _leave(number)
        stop_all()
        if callable(previous[number]):
            previous[number](number, frame)
        raise KeyboardInterrupt

    global _depth, _leave
    _depth += 1
    _leave = leave or _leave
    if threading.current_thread() is threading.main_thread():  # only there are signals handled
        for kind in (signal.SIGTERM, signal.SIGINT):
            previous[kind] = signal.signal(kind, interrupt)
    try:
        yield
    finally:
        stop_all()
        for number, handler in previous.items():
            signal.signal(number, handler)
        _depth -= 1
        if _depth == 0:
            _leave = None
            _stopping.clear()


def timings_path(project: Path) -> Path:
    """Where the last run's timings lie."""
    return project / ".rank-e" / "timings.jsonl"


def record(project: Path, timing: Timing) -> None:
    """Append one line to .rank-e/timings.jsonl."""
    path = timings_path(project)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(timing), sort_keys=True) + "\n")
