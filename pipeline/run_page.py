"""What a run's page in Prefect says: stages by the method's words, a table at each round's end, how far the run is."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact

from pipeline.dvc import Timing
from pipeline.graph import Node
from pipeline.tracking.stamp import LINKS
from stages.report.metrics import columns_of
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import ARGUMENTS, WORK, artifact_path
from stages.runtime.usage import read_usage

WORDS = {
    "code": "list of source files",
    "reference": "real images",
    "baseline": "evaluation of the base",
    "sft": "supervised start",
    "sft_evaluation": "evaluation of the start",
    "policy": "policy update",
    "decoder": "decoder update",
}
"""What a stage is called where its name says too little."""
ON_CPU = ("code", "start", "report")
"""Stages that compute nothing on a device."""
CARRYING = ("ranking", "policy", "decoder")
"""Stages whose numbers of a whole round are shown at its end, before those of its evaluation."""
KEY = "co-evolution"
"""Of the artifact that says how far a run is."""
FORBIDDEN = re.compile(r"[^a-z0-9-]")
"""What Prefect takes in no key of an artifact."""


def words(node: Node) -> str:
    """What a node's stage does: `decoder update`."""
    return WORDS.get(node.name, node.name)


def title(node: Node) -> str:
    """A node as the method's step: `coevolved · s0 · round 3 · decoder update`."""
    seed = None if node.seed is None else f"s{node.seed}"
    number = None if node.round is None else f"round {node.round}"
    return " · ".join(part for part in (node.arm, seed, number, words(node)) if part is not None)


Kind = tuple[str, str | None]
"""A stage's name and the arm that it is of: stages of one kind take about as long as each other."""


def kind_of(node: Node) -> Kind:
    """The kind of a node."""
    return node.name, node.arm


@contextmanager
def only_shown() -> Iterator[None]:
    """A server that does not take what is only to be shown fails no stage: the log says so."""
    try:
        yield
    except Exception as error:  # whatever Prefect's client raises
        get_run_logger().warning("Prefect's page lacks something: %s", error)


class Progress:
    """How many stages have ended, of how many, and when the rest will have; for the log and for Prefect's page."""

    def __init__(self, project: Path, nodes: Sequence[Node], jobs: int) -> None:
        self._seconds = recorded_seconds(project)
        self._left, self._total, self._jobs = Counter(map(kind_of, nodes)), len(nodes), jobs
        self._began, self._lock = time.monotonic(), threading.Lock()
        self._shown: UUID | None = None

    def begin(self) -> None:
        """Show it on the page of the flow run that this is called in."""
        with only_shown():
            self._shown = cast(UUID, create_progress_artifact(0.0, key=KEY, description=self._words()))

    def line(self, node: Node, timing: Timing) -> str:
        """One line for a stage that has ended; the page is brought up to date."""
        with self._lock:
            self._left[kind_of(node)] -= 1
            if timing.outcome == "ran":
                self._seconds[kind_of(node)] = timing.seconds
            done = self._total - self._left.total()
            if self._shown is not None:
                with only_shown():
                    update_progress_artifact(self._shown, 100 * done / self._total, description=self._words())
        return f"{node.label}: {outcome(timing)} [{done}/{self._total}, {time.monotonic() - self._began:.0f} s]"

    def _words(self) -> str:
        done = self._total - self._left.total()
        return f"{done} of {self._total} stages; {remaining(self._left, self._seconds, self._jobs)}"


def outcome(timing: Timing) -> str:
    """How a stage ended: `ran, 12.3 s, peak 705 MB`, `restored` or `unchanged`."""
    seconds = f"{timing.seconds:.1f} s" if timing.outcome == "ran" else ""
    peak = "" if timing.peak_rss_mb is None else f"peak {timing.peak_rss_mb:.0f} MB"
    return ", ".join(part for part in (timing.outcome, seconds, peak) if part)


def remaining(left: Mapping[Kind, int], seconds: Mapping[Kind, float], jobs: int) -> str:
    """How long the stages that are left take: each as long as the last one of its kind, `jobs` side by side."""
    kinds = [kind for kind, count in left.items() if count]
    unknown = [" ".join(filter(None, kind)) for kind in kinds if kind not in seconds]
    if unknown:
        return f"how long the rest takes is not known before the first {unknown[0]}"
    spent = sum(left[kind] * seconds[kind] for kind in kinds) / jobs
    return f"about {spent / 60:.0f} minutes left" if spent >= 90 else f"about {spent:.0f} seconds left"


def recorded_seconds(project: Path) -> dict[Kind, float]:
    """Seconds of the last stage of each kind that ran here; a record that a kill has cut off is none."""
    found: dict[Kind, tuple[float, float]] = {}
    for file in sorted((project / WORK / "usage").glob("*.json")):
        name, *rest = file.stem.split("-")
        usage = read_usage(file, "ended", "seconds")
        if usage is not None:
            arm = rest[0] if "arm" in ARGUMENTS.get(name, ()) else None
            found[name, arm] = max(found.get((name, arm), (0.0, 0.0)), (usage["ended"], usage["seconds"]))
    return {kind: seconds for kind, (_, seconds) in found.items()}


def show_round(project: Path, arm: str, seed: int, number: int) -> bool:
    """A table of a round's numbers for the page of the subflow that this is called in; whether MLflow's run is linked.

    Nothing where the round has no numbers.
    """
    rows = round_rows(project, arm, seed, number)
    address = links(project).get(f"{arm}/s{seed}/r{number}")
    if rows:
        where = f"; [its run in MLflow]({address})" if address else ""
        key = FORBIDDEN.sub("-", f"{arm}-s{seed}-round-{number}".lower())
        with only_shown():
            create_table_artifact(rows, key=key, description=f"{arm} · s{seed} · round {number}{where}")
    return address is not None


def round_rows(project: Path, arm: str, seed: int, number: int) -> list[dict[str, Any]]:
    """The numbers of a round: its evaluation's in their units with 95 % intervals, then those of its stages."""

    def read(kind: str, name: str) -> Any:
        path = project / artifact_path(kind, arm, seed, number)
        return read_artifact(path, kind, lineage=False).json(name) if path.exists() else None

    rows = []
    metrics = read("evaluation", "metrics") or {}
    for column in columns_of(read("evaluation", "descriptions") or ()):
        entry = metrics.get(column.key, {})
        if "value" in entry:
            ends = [column.text(entry[end]) for end in ("low", "high") if end in entry]
            name = f"{column.name} {column.arrow}"
            rows.append({"metric": name, "value": column.text(entry["value"]), "95 %": " to ".join(ends)})
    for kind in CARRYING:
        for name, value in (read(kind, "metrics") or {}).items():
            rows.append({"metric": f"{kind}: {name.replace('_', ' ')}", "value": f"{value:.4g}", "95 %": ""})
    return rows


def links(project: Path) -> dict[str, str]:
    """The addresses of MLflow's runs, by what each is of; none where MLflow has no server."""
    try:
        found = json.loads((project / LINKS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
