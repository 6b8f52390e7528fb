"""Which run of MLflow the artifacts that lie there are of."""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Metric, Run

from pipeline.tracking.lineage import CURVES, Made, Round
from pipeline.tracking.points import TRAINING
from pipeline.tracking.store import CURRENT, PROJECT, STATE, Store, hashes
from rank_e.io.files import replacing

Points = Callable[[int, str], list[Metric]]
"""Every point of a round's stage, of one at work as far as it has come."""

WORD = re.compile(r"[0-9a-f]{32}")
"""What names a project."""


@dataclass
class Family:
    """A run of an arm and its nested rounds, by their ids."""

    parent: Run
    rounds: dict[int, Run] = field(default_factory=dict)

    @property
    def known(self) -> dict[tuple[int, str], str]:
        """The sha256 of each manifest that has been copied into it, by round and stage."""
        return {(number, stage): sha for number, run in self.rounds.items() for stage, sha in hashes(run).items()}


@dataclass(frozen=True)
class Evidence:
    """What lies there of an arm and seed."""

    rounds: dict[int, Round]
    start: Made | None
    points: Points

    @property
    def made(self) -> dict[tuple[int, str], Made]:
        """Every artifact by round and stage."""
        return {(number, stage): made for number, item in self.rounds.items() for stage, made in item.made.items()}


class Families:
    """The runs of one project in a store."""

    def __init__(self, store: Store, project: Path) -> None:
        self.store, self.me = store, _project_id(project)

    def mine(self, run: Run) -> bool:
        """Whether this project has made a run: others may share the store, and even the first artifacts."""
        return bool(run.data.tags.get(PROJECT) == self.me)

    def _is_current(self, run: Run) -> bool:
        return self.mine(run) and run.data.tags.get(STATE) == CURRENT

    def find(self, key: str, evidence: Evidence) -> tuple[Family | None, str]:
        """The run that the artifacts are of, and why the one that was current is not that ("": it is, or none was)."""
        reason = ""
        for run in self.store.with_key(key):
            rounds = {int(name.rpartition("/r")[2]): child for name, child in self.store.children(run).items()}
            family = Family(run, rounds)
            found = self._contradiction(family, evidence)
            if not found:
                return family, reason
            if self._is_current(run):
                reason = reason or found
        return None, reason

    def make_current(self, key: str, run: Run | None) -> bool:
        """Tag every other current run of this project, and its rounds, as superseded; whether there was one.

        So are rounds whose own run was deleted, and one of two of the same number: two trackers began it at once.
        """
        by = "" if run is None else run.info.run_id
        there = self.store.with_key(key)
        shown = {child.info.run_id for other in there for child in self.store.children(other).values()}
        for lost in self.store.below(key):
            if lost.info.run_id not in shown and self._is_current(lost):
                self.store.supersede(lost, by)
        others = [other for other in there if other.info.run_id != by and self._is_current(other)]
        for other in others:
            for item in (*self.store.children(other).values(), other):  # itself last: a broken pass finds it again
                self.store.supersede(item, by)
        return bool(others)

    def _contradiction(self, family: Family, evidence: Evidence) -> str:
        """Why a run cannot be the one of these artifacts, or "" if it can."""
        known, made = family.known, evidence.made
        for (number, stage), sha in known.items():
            if stage in evidence.rounds.get(number, Round()).left_out:
                return evidence.rounds[number].left_out[stage]
            if (number, stage) in made and made[number, stage].sha256 != sha:
                return f"another {stage} in round {number}"
        start = hashes(family.parent).get("start")
        if start and evidence.start is not None and evidence.start.sha256 != start:
            return "another start"
        if not self.mine(family.parent):
            all_there = all(key in made for key in known)
            return "" if known and all_there and not any(map(_live, family.rounds.values())) else "another project's"
        for number, run in family.rounds.items():
            item = evidence.rounds.get(number, Round())
            for stage in [stage for stage in item.made if (number, stage) not in known] + list(item.working):
                if self.store.contradicts(run, evidence.points(number, stage)):
                    return f"another curve of {stage} in round {number}"
        return ""


def _live(run: Run) -> bool:
    """Whether a round holds points of a stage that was not finished when they were copied."""
    stages = [stage for stage in CURVES if stage not in hashes(run)]
    return any(name.startswith(f"{TRAINING}/{stage}/") for name in run.data.metrics for stage in stages)


def _project_id(project: Path) -> str:
    """A word for this project, wherever it is moved to, made when it is first asked for or has become another thing."""
    path = project / ".rank-e" / "project"
    word = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not WORD.fullmatch(word):
        word = uuid.uuid4().hex
        with replacing(path) as file:
            file.write_text(word, encoding="utf-8")
    return word
