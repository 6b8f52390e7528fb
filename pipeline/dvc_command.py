"""The `dvc` of the project's environment: DVC itself, but one `repro` or `exp run` at a time, and none beside a run.

DVC alone would tell of another process only at the first stage that both want, in four lines, and stop at a lock file
that a killed process left half written. Stages refuse to work beside a run in any case: `python -m dvc` relies on that
alone.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dvc.cli import main as dvc
from dvc.exceptions import NotDvcRepoError
from dvc.repo import Repo

from pipeline.lock import owning
from stages.runtime.failures import one_line
from stages.runtime.locks import patience


def reproduces(words: Sequence[str]) -> bool:
    """Whether DVC's arguments make it run stages; not where `--cd` leads to another project."""
    plain = [word for word in words if not word.startswith("-")]
    helps = {"-h", "--help"} & set(words)
    return not helps and (plain[:1] == ["repro"] or plain[:2] in (["exp", "run"], ["experiments", "run"]))


def main() -> None:
    """Entry point: DVC's command line, under the project's lock where it runs stages."""
    if not reproduces(sys.argv[1:]):
        sys.exit(dvc())
    try:
        root = Path(Repo.find_root())
    except NotDvcRepoError:
        sys.exit(dvc())  # which says so
    with one_line("dvc"), owning(root, "dvc repro", patience()):
        sys.exit(dvc())


if __name__ == "__main__":
    main()
