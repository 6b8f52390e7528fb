"""What a stage cost: seconds, memory, and when."""

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from rank_e.io.files import replacing
from rank_e.io.json_text import parse_json
from stages.runtime.artifacts import MANIFEST, manifest_sha256
from stages.runtime.phases import PHASES


def record_usage(path: Path, began: float, artifact: Path, shared: Mapping[str, Any]) -> None:
    """Write seconds, whole and by phase, when it ended, of which revision the code was, peak resident MB, the GPU's
    peak if one was used, and which artifact came of it.

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
    if (artifact / MANIFEST).is_file():
        usage["artifact"] = manifest_sha256(artifact)
    if shared:
        usage["shared"] = dict(shared)
    with replacing(path) as file:
        file.write_text(json.dumps(usage), encoding="utf-8")


def read_usage(path: Path, *keys: str) -> dict[str, Any] | None:
    """What `record_usage` wrote; None where nothing is, or where one of these `keys` is no finite number from 0 on.

    Costs are told beside the results and decide none: a damaged record is as one that is not there.
    """
    try:
        usage = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(usage, dict) or not all(_cost(usage.get(key)) for key in keys):
        return None
    shared = usage.get("shared")
    whole = shared is None or (isinstance(shared, dict) and _cost(shared.get("seconds")))
    return usage if whole else None


def spent(usage: Mapping[str, Any], artifact: Path) -> float | None:
    """Seconds that an artifact took, less those in which its stage waited for another; None where it is not this one's.

    usage: what `read_usage` gave for its stage, with "seconds".
    """
    phases = usage.get("phases")
    waited = phases.get("wait") if isinstance(phases, dict) else None
    made = (artifact / MANIFEST).is_file() and usage.get("artifact") == manifest_sha256(artifact)
    return max(0.0, float(usage["seconds"]) - float(waited)) if made and _cost(waited) else None


def _cost(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


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
