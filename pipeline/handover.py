"""What a run does between its stages: states that are not kept are freed, and a remote shares the work with others.

None of it stops the run: what goes wrong is said, and the next stage or run does it again.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dvc.repo import Repo

from pipeline import dvc
from pipeline.between import BETWEEN, Between
from pipeline.graph import Node
from pipeline.remote import Remote
from pipeline.retention import read_keep


class Command(Between):
    """A command of this project, once at a time; the last line of one that fails is said and kept."""

    def __init__(self, project: Path, failures: list[str]) -> None:
        self.project, self.failures = project, failures
        self._alone = threading.Lock()

    def run(self, *words: str) -> None:
        """`python -m ...` in the project."""
        with self._alone:
            done = subprocess.run(
                [sys.executable, "-m", *words],
                cwd=self.project,
                env=dvc.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
        if done.returncode != 0 and not dvc.stopping():
            lines = done.stderr.strip().splitlines() or [f"{' '.join(words[:2])} ended with {done.returncode}"]
            if lines[-1] not in self.failures:
                self.failures.append(lines[-1])
                print(lines[-1], file=sys.stderr, flush=True)


class Collecting(Command):
    """`rank-e gc` whenever an arm has trained on."""

    def __init__(self, project: Path, failures: list[str], keep: str, remote: str | None) -> None:
        super().__init__(project, failures)
        named = () if remote is None else ("--remote", remote)
        self.words = ("pipeline.cli", "gc", "--keep", keep, "--yes", *named)

    def after(self, node: Node) -> None:
        """A round before this one may be of no more use."""
        if node.name in ("policy", "decoder", "evaluation") and (node.round or 0) > 1:
            self.run(*self.words)


class Sharing(Command):
    """What another machine has made comes from a remote, what this one makes goes there, stage by stage."""

    options = ("--pull",)

    def __init__(self, project: Path, failures: list[str], remote: str) -> None:
        super().__init__(project, failures)
        self.remote = remote

    def before(self, nodes: Sequence[Node]) -> None:
        """What others have made since."""
        self.run("pipeline.remote", "fetch", self.remote)

    def after(self, node: Node) -> None:
        """The node's outputs, and the run-cache."""
        self.run("pipeline.remote", "push", self.remote, node.address)


def share_by(project: Path, remote: str) -> None:
    """Make a remote DVC's default in this clone; RankEError where there is none of this name, or it cannot be read."""
    with Repo(str(project)) as repo:
        Remote(repo, remote).make_default()


@contextmanager
def between(project: Path, keep: str | None, remote: str | None) -> Iterator[list[str]]:
    """While the block runs, stages are shared by the remote of this name; rounds that `keep` does not name are freed.

    None: not at all. Yields what went wrong so far, in lines, said already. RankEError before the block where the
    remote cannot be used.
    """
    failures: list[str] = []
    commands: list[Command] = []
    if remote is not None:
        share_by(project, remote)
        commands.append(Sharing(project, failures, remote))
    if keep is not None:
        read_keep(keep)
        commands.append(Collecting(project, failures, keep, remote))
    BETWEEN.extend(commands)
    try:
        yield failures
    finally:
        for command in commands:
            BETWEEN.remove(command)
