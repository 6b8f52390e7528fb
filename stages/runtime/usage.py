"""What a stage cost: seconds, memory, and when."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.runtime.phases import PHASES


def record_usage(path: Path, began: float, shared: Mapping[str, Any]) -> None:
    """Write seconds, whole and by phase, when it ended, of which revision the code was, peak resident MB, and the GPU's
    peak if one was used.

    began: of time.monotonic(); ended: Unix seconds, so that clocks stay out of artifacts. shared: `Stage.shared`.
    """
    seconds = time.monotonic() - began
    usage: dict[str, Any] = {"seconds": round(seconds, 3), "peak_rss_mb": round(resource_peak_mb(), 1)}
    usage |= {"phases": PHASES.table(seconds), "ended": round(time.time(), 3)}
    torch = sys.modules.get("torch")  # not there: no GPU was used
    if torch is not None and torch.cuda.is_initialized():
        usage["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    if commit := revision():
        usage["revision"] = commit
    if shared:
        usage["shared"] = dict(shared)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(usage))


def revision() -> str:
    """git's name of the commit that is checked out, "" where there is none or no git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def resource_peak_mb() -> float:
    """The most memory that this process has held, in MB; Linux counts it in KiB, macOS in bytes."""
    unit = 1024 if sys.platform == "linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
