"""The `dvc` of the project's environment: DVC itself, but one `repro` or `exp run` at a time, and none beside a run.

DVC alone would tell of another process only at the first stage that both want, in four lines, and stop at a lock file
that a killed process left half written. Stages refuse to work beside a run in any case: `python -m dvc` relies on that
alone.

Its stages run in forks of one warm process, which imports the heavy libraries once, when the first of them asks.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dvc.cli import main as dvc
from dvc.exceptions import NotDvcRepoError
from dvc.repo import Repo

from pipeline.counting import counting, stages_of
from pipeline.dvc_hashes import knowing_hashes
from pipeline.dvc_restore import restoring_whole
from pipeline.dvc_writing import writing_whole
from pipeline.lock import owning
from pipeline.lock_text import lock_problem
from rank_e.errors import RankEError
from stages.runtime.failures import one_line
from stages.runtime.locks import patience
from stages.runtime.warm import SOCKET, warm_stages


def reproduces(words: Sequence[str]) -> bool:
    """Whether DVC's arguments make it run stages; not where `--cd` leads to another project."""
    plain = [word for word in words if not word.startswith("-")]
    helps = {"-h", "--help"} & set(words)
    return not helps and (plain[:1] == ["repro"] or plain[:2] in (["exp", "run"], ["experiments", "run"]))


@contextlib.contextmanager
def warmed(project: Path, words: Sequence[str]) -> Iterator[None]:
    """`warm_stages`, where the stages' Python is this one and they run in this folder, and nobody else has begun it."""
    chosen = os.environ.get("RANK_E_PYTHON") or shutil.which(".venv/bin/python", path=str(project))
    chosen = chosen or shutil.which("python") or ""
    own = Path(chosen).absolute().parent == Path(sys.executable).absolute().parent
    if own and SOCKET not in os.environ and not {"--temp", "--queue", "--dry"} & {*words}:
        with warm_stages(project):
            yield
    else:
        yield


def main() -> None:
    """Entry point: DVC's command line, under the project's lock where it runs stages."""
    with writing_whole():
        command(sys.argv[1:])


def command(words: Sequence[str]) -> None:
    """DVC's command line with these arguments; the process ends."""
    if not reproduces(words):
        sys.exit(dvc())
    try:
        root = Path(Repo.find_root())
    except NotDvcRepoError:
        sys.exit(dvc())  # which says so
    targets = [word for word in words if word not in ("repro", "exp", "experiments", "run")]
    with one_line("dvc"), owning(root, "dvc repro", patience()), warmed(root, words):
        if problem := lock_problem(root):
            raise RankEError(problem)
        total = stages_of(root, targets)
        with counting(total), restoring_whole(), knowing_hashes():
            sys.exit(dvc())


if __name__ == "__main__":
    main()
