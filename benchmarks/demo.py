"""Measure the whole pipeline: `rank-e run` in a fresh copy of the project, seconds and peak memory of every
stage.

What the run found is written too: levels of every arm, and each decoder on the same tokens, as report/results.json has
them. Nothing is reused: the copy has no artifacts, no cache and no MLflow store. The peak of a stage is its process's
own (resident, so libraries shared with others count); the total's peak is sampled twice a second over everything
the command started, DVC, Prefect and the copier to MLflow included, shared pages counted once. Writes
benchmarks/results/demo-<date>.json.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.dvc import end_group, timings_path

ROOT = Path(__file__).resolve().parents[1]
SAMPLING = 0.5


def copy_project(target: Path) -> None:
    """The files that git knows or would take, as they are now; what it ignores stays behind."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file():  # a deleted file is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    # DVC wants the workspace that its configuration speaks of.
    subprocess.run(["git", "init", "--quiet"], cwd=target, check=True)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor()
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def memory_of(pid: int) -> float:
    """Proportional set size in MB of a process and all below it, together; who ends while we look is gone."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += member.memory_full_info().pss
    return total / 1e6


class Peak:
    """The peak memory in MB of a process and everything below it, sampled while the block runs.

    Proportional set sizes: a page that several processes share is counted once.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.value = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(SAMPLING):
            self.value = max(self.value, memory_of(self.pid))

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def by_stage(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each kind of stage: how many ran, their seconds together and at most, the highest peak."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        name = row["stage"].partition("@")[0]
        entry = found.setdefault(name, {"count": 0, "seconds": 0.0, "longest_seconds": 0.0, "peak_rss_mb": 0.0})
        entry["count"] += 1
        entry["seconds"] = round(entry["seconds"] + row["seconds"], 3)
        entry["longest_seconds"] = max(entry["longest_seconds"], row["seconds"])
        entry["peak_rss_mb"] = max(entry["peak_rss_mb"], row["peak_rss_mb"] or 0.0)
    return found


def found(workspace: Path) -> dict[str, Any]:
    """Means of what the finished run's report holds: levels by arm, and differences of decoders on the same tokens."""
    held = json.loads((workspace / "report" / "results.json").read_text(encoding="utf-8"))
    same_tokens = {
        name: {key: entry["mean"] for key, entry in entries.items()}
        for name, entries in held["decoder_on_same_tokens"].items()
    }
    return {"base": held["base"], "arms": held["arms"], "decoder_on_same_tokens": same_tokens}


def measure(workspace: Path, profile: str | None, arguments: list[str]) -> dict[str, Any]:
    """Run in `workspace`; the exit status is an error's if the run failed."""
    environment = {**os.environ, "PYTHONPATH": str(workspace), "PREFECT_HOME": str(workspace / ".prefect")}
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pipeline.cli"]
    if profile is not None:
        subprocess.run([*command, "profile", profile], cwd=workspace, env=environment, check=True)
    began = time.monotonic()
    process = subprocess.Popen([*command, "run", *arguments], cwd=workspace, env=environment, start_new_session=True)
    try:
        with Peak(process.pid) as peak:
            status = process.wait()
    finally:
        end_group(process)
    wall = time.monotonic() - began
    if status != 0:
        sys.exit(f"benchmarks/demo.py: `rank-e run` ended with {status} in {workspace}")
    rows = [json.loads(line) for line in timings_path(workspace).read_text(encoding="utf-8").splitlines()]
    return {
        "profile": profile or "params.yaml",
        "arguments": arguments,
        "wall_seconds": round(wall, 1),
        "peak_rss_mb": round(peak.value, 1),
        "by_stage": by_stage(rows),
        "found": found(workspace),
        "stages": rows,
    }


def main() -> None:
    """Measure once and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--profile", help="a name from profiles/ (default: params.yaml as it is)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--no-track", action="store_true")
    parser.add_argument("--keep", type=Path, help="run in this new folder and leave it there")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception: it ends the run too
    arguments = ["--jobs", given.jobs, *(["--no-track"] if given.no_track else [])]
    with tempfile.TemporaryDirectory(prefix="rank-e-demo-") as temporary:
        folder = Path(temporary) if given.keep is None else given.keep.resolve()
        folder.mkdir(parents=True, exist_ok=given.keep is None)
        copy_project(folder)
        result = measure(folder, given.profile, arguments)
    moment = datetime.now(UTC)
    result = {"date": moment.isoformat(timespec="seconds"), "machine": machine(), **result}
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / f"demo-{moment:%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{result['wall_seconds']} s, peak {result['peak_rss_mb']} MB; by stage in {path}")


if __name__ == "__main__":
    main()
