"""A stage as a process: how it begins, and that it does not outlive what started it. Light: no heavy imports."""

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path


def run_module(name: str, arguments: list[str]) -> None:
    """Run the stage module `stages.NAME` as the main program of this process."""
    sys.argv = [f"stages.{name}", *arguments]
    runpy.run_module(f"stages.{name}", run_name="__main__", alter_sys=True)


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
