"""What the benchmarks share: timing, the machine, rows of one form, a table, a small JSON."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One case: seconds (medians) of ours and of the reference, and what the hardware allows; None: not measured.

    ratio = reference / ours; of_floor = floor / ours, the share of the bound that is reached; memory and
    reference_memory: peak GB on the device.
    """

    case: str
    ours: float | None = None
    reference: float | None = None
    ratio: float | None = None
    floor: float | None = None
    of_floor: float | None = None
    memory: float | None = None
    reference_memory: float | None = None
    note: str = ""


def row(
    case: str, ours: Timed | None, reference: Timed | None = None, floor: float | None = None, note: str = ""
) -> Row:
    """A row with its ratios."""
    return Row(
        case,
        _rounded(ours and ours.seconds),
        _rounded(reference and reference.seconds),
        _rounded(ours and reference and reference.seconds / ours.seconds),
        _rounded(floor),
        _rounded(ours and floor and floor / ours.seconds),
        _rounded(ours and ours.memory),
        _rounded(reference and reference.memory),
        note,
    )


@dataclass(frozen=True)
class Timed:
    """Median seconds of a call, and the peak memory in GB that it took on the device (None on a CPU)."""

    seconds: float
    memory: float | None


def timed(call: Callable[[], Any], device: torch.device, repeats: int = 3, warm_ups: int = 1) -> Timed:
    """Call `warm_ups` times, then `repeats` times by the clock, each time until the device is done."""
    for _ in range(warm_ups):
        call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return Timed(statistics.median(seconds), memory)


def paired(
    ours: Callable[[], Any], reference: Callable[[], Any], device: torch.device, repeats: int = 3
) -> tuple[Timed, Timed]:
    """Both in turn, so that what slows the machine slows both."""
    ours(), reference()
    found: tuple[list[Timed], list[Timed]] = ([], [])
    for _ in range(repeats):
        for call, times in zip((ours, reference), found, strict=True):
            times.append(timed(call, device, repeats=1, warm_ups=0))
    return tuple(Timed(statistics.median(t.seconds for t in times), times[-1].memory) for times in found)  # type: ignore[return-value]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def release() -> None:
    """Give back what the last case held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on, and with which versions."""
    model = platform.processor()
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    found = {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def commit() -> str | None:
    """The commit that is measured, with a + if files differ from it; None outside a git checkout."""
    root = Path(__file__).parents[1]
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    if head.returncode != 0:
        return None
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=False
    )
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


class Report:
    """Rows as they come: printed at once, written after each, so that a stopped run leaves what it measured."""

    def __init__(self, name: str, device: torch.device, folder: Path = RESULTS, **also: Any) -> None:
        moment = datetime.now(UTC)
        self.path = folder / f"{name}-{moment:%Y-%m-%d}.json"
        self.head = {
            "date": moment.isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(device),
            **also,
        }
        self.rows: list[Row] = []
        self.began = time.monotonic()
        titles = ("case", "ours s", "ref. s", "ratio", "floor s", "of floor", "GB", "ref. GB")
        print(f"{titles[0]:<52}" + "".join(f"{title:>10}" for title in titles[1:]), flush=True)

    def add(self, *rows: Row) -> None:
        """Print rows and write all there are."""
        for item in rows:
            self.rows.append(item)
            values = (
                item.ours,
                item.reference,
                item.ratio,
                item.floor,
                item.of_floor,
                item.memory,
                item.reference_memory,
            )
            shown = "".join(f"{'-' if value is None else f'{value:.4g}':>10}" for value in values)
            print(f"{item.case:<52}{shown}  {item.note}".rstrip(), flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            **self.head,
            "seconds": round(time.monotonic() - self.began, 1),
            "rows": [asdict(r) for r in self.rows],
        }
        self.path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def case(self, name: str, limit: float | None = None) -> Iterator[bool]:
        """A case whose failure is a row without figures, not the end; False in it means that the time is up."""
        late = limit is not None and time.monotonic() - self.began > limit
        try:
            yield not late
            if late:
                self.add(Row(name, note="not measured: out of time"))
        except (RuntimeError, ImportError, ValueError, TypeError, AttributeError, KeyError) as error:
            self.add(Row(name, note=f"not measured: {type(error).__name__}: {str(error).splitlines()[0][:160]}"))
        finally:
            release()


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
