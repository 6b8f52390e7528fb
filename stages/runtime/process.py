"""A stage as a process: how it begins, and that it does not outlive what started it. Light: no heavy imports."""

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

from rank_e.errors import RankEError

REFUSED = 65
"""Exit status of a stage that ends the same way however often it is tried: EX_DATAERR of sysexits.h."""
TEMPORARY = ("LockedError", "ChangedError")
"""Errors that say what is wrong but may have gone away: by name, since this module imports next to nothing."""


def run_module(name: str, arguments: list[str]) -> None:
    """Run the stage module `stages.NAME` as the main program of this process.

    It exits with REFUSED after an error that only its user can mend: wrong params, damaged data, a number that is not
    finite.
    """
    sys.argv = [f"stages.{name}", *arguments]
    try:
        runpy.run_module(f"stages.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        cause = leaving.__context__  # what the program said in one line
        if isinstance(cause, RankEError) and type(cause).__name__ not in TEMPORARY:
            print(leaving.code, file=sys.stderr)
            sys.exit(REFUSED)
        raise


def follow_parent(parent: int | None = None) -> None:
    """Die with the parent: a killed `dvc` would leave a writer behind that the next run collides with.

    Give `parent` where it is known: it may be dead by now.
    """
    if sys.platform != "linux":
        return
    known = parent is not None
    parent = os.getppid() if parent is None else parent
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    if ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the kernel was asked, even before Python came this far: init adopts.
    under_dvc = "DVC_STAGE" in os.environ and not known
    adopted = under_dvc and os.getppid() == 1 and b"dvc" not in Path("/proc/1/cmdline").read_bytes()
    if os.getppid() != parent or adopted:
        sys.exit(1)
