"""The stages of dvc.yaml with their matrices expanded: DVC's own names, what each is called for, what it
waits for.

DVC could list the names, but not arm, seed and round behind them, and asking costs a second. Names are
built by the rule DVC documents: `stage@a-b`, where a value stands for itself and a mapping for its key and
index (`round0`).
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rank_e.errors import RankEError

PLACE = re.compile(r"\$\{\s*([^}]+?)\s*\}")
STEP = re.compile(r"[^.\[\]]+")


class GraphError(RankEError):
    """dvc.yaml cannot be read, or names a parameter that params.yaml does not have."""


@dataclass(frozen=True)
class Stage:
    """One stage after expansion: DVC's name for it, its coordinates (None where it has none), its files."""

    address: str
    name: str
    arm: str | None
    seed: int | None
    round: int | None
    deps: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def label(self) -> str:
        """The stage for people: `policy coevolved s0 r2`."""
        seed = None if self.seed is None else f"s{self.seed}"
        number = None if self.round is None else f"r{self.round}"
        return " ".join(part for part in (self.name, self.arm, seed, number) if part is not None)

    @property
    def chain(self) -> tuple[str, int] | None:
        """The (arm, seed) whose stages follow each other; None for a stage that all share."""
        return None if self.arm is None or self.seed is None else (self.arm, self.seed)


@dataclass(frozen=True)
class Job:
    """Stages that one DVC process reproduces one after another, and the names of the jobs that it waits for."""

    name: str
    stages: tuple[Stage, ...]
    waits: frozenset[str]


def load_graph(project: Path) -> list[Stage]:
    """Expand dvc.yaml with params.yaml, without frozen stages (DVC leaves them alone)."""
    pipeline, params = (_read(project / name) for name in ("dvc.yaml", "params.yaml"))
    found = []
    for name, body in pipeline["stages"].items():
        if body.get("frozen", False):
            continue
        for key, item in _cells(name, body.get("matrix"), params):
            context = {**params, "item": item}
            deps, outs = (
                tuple(_resolve(_path(entry), context, name) for entry in body.get(part, ()))
                for part in ("deps", "outs")
            )
            number = item.get("round")
            number = number["id"] if isinstance(number, Mapping) else number
            address = f"{name}@{key}" if key else name
            found.append(Stage(address, name, item.get("arm"), item.get("seed"), number, deps, outs))
    return found


def make_jobs(stages: Sequence[Stage]) -> list[Job]:
    """Part the stages into jobs, the first to be done first: round by round, then as in dvc.yaml.

    The stages that carry an arm and seed through a round are one job. What nothing in its chain waits for (an
    evaluation) is a job of its own, for whoever has time; so are the shared stages of a name and seed that wait for
    the same. GraphError if stages wait for each other in a circle.
    """
    waits = dependencies(stages)
    ordered = _sorted(stages, waits)
    carrying = {other.address for stage in ordered for other in waits[stage.address] if other.chain == stage.chain}
    groups: dict[tuple[Any, ...], list[Stage]] = {}  # by round, and what else keeps them apart
    for stage in ordered:
        if stage.chain is None:
            inputs = frozenset(other.address for other in waits[stage.address])
            groups.setdefault((0, stage.name, stage.seed, inputs), []).append(stage)
        elif stage.address in carrying:  # the start belongs to the first round
            groups.setdefault((stage.round or 1, *stage.chain), []).append(stage)
        else:
            groups.setdefault((stage.round or 0, stage.address), []).append(stage)
    names = {stage.address: _job_name(members) for members in groups.values() for stage in members}
    found = []
    for _, members in sorted(groups.items(), key=lambda group: group[0][0]):
        name = names[members[0].address]
        needed = {names[other.address] for stage in members for other in waits[stage.address]}
        found.append(Job(name, tuple(members), frozenset(needed - {name})))
    _require_an_order(found)
    return found


def _require_an_order(jobs: Sequence[Job]) -> None:
    """Jobs may wait for each other where their stages do not: an arm that reads from the middle of another's round."""
    left, done = list(jobs), set[str]()
    while ready := [job for job in left if job.waits <= done]:
        done |= {job.name for job in ready}
        left = [job for job in left if job not in ready]
    if left:
        raise GraphError(f"dvc.yaml: these wait for each other: {', '.join(job.name for job in left)}")


def _job_name(members: Sequence[Stage]) -> str:
    """The stage's own label where it is alone, `coevolved s0 r1` for a round, else the first's and how many more."""
    first, last = members[0], members[-1]
    if len(members) == 1:
        return last.label
    if last.chain is None:
        return f"{first.label} and {len(members) - 1} more"
    return last.label.removeprefix(f"{last.name} ")


def dependencies(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    """For each address the stages whose outputs it reads: the same path, one inside it or one around it."""
    writers = {out: stage for stage in stages for out in stage.outs}
    found: dict[str, list[Stage]] = {}
    for stage in stages:
        needed: dict[str, Stage] = {}
        for dep in stage.deps:
            around = [str(parent) for parent in PurePosixPath(dep).parents]
            for out, writer in writers.items():
                if out == dep or out in around or out.startswith(f"{dep}/"):
                    needed[writer.address] = writer
        needed.pop(stage.address, None)
        found[stage.address] = list(needed.values())
    return found


def _sorted(stages: Sequence[Stage], waits: Mapping[str, Sequence[Stage]]) -> list[Stage]:
    """The stages after all that they wait for; by round, then as in dvc.yaml, where that leaves a choice."""
    order = {stage.address: (stage.round or 0, index) for index, stage in enumerate(stages)}
    left = sorted(stages, key=lambda stage: order[stage.address])
    done: set[str] = set()
    found: list[Stage] = []
    while left:
        ready = next((s for s in left if all(other.address in done for other in waits[s.address])), None)
        if ready is None:
            raise GraphError(f"dvc.yaml: these wait for each other: {', '.join(s.label for s in left)}")
        left.remove(ready)
        done.add(ready.address)
        found.append(ready)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GraphError(f"{path} does not exist: run in the project's folder") from None
    except YAMLError as error:
        raise GraphError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise GraphError(f"{path} must be a mapping")
    return data


def _cells(name: str, matrix: Mapping[str, Any] | None, params: dict) -> list[tuple[str, dict[str, Any]]]:
    """Each combination of a stage's matrix as (key in the address, item); one empty one without a matrix."""
    if not matrix:
        return [("", {})]
    axes = []
    for axis, values in matrix.items():
        resolved = _lookup(values, params, name) if isinstance(values, str) else values
        axes.append(
            [
                (f"{axis}{index}" if isinstance(value, dict | list) else str(value), axis, value)
                for index, value in enumerate(resolved)
            ]
        )
    return [
        ("-".join(key for key, _, _ in cell), {axis: value for _, axis, value in cell})
        for cell in itertools.product(*axes)
    ]


def _path(entry: str | Mapping[str, Any]) -> str:
    """The path of a dependency or output, which may carry options as a mapping of one key."""
    return entry if isinstance(entry, str) else next(iter(entry))


def _resolve(template: str, context: Mapping[str, Any], name: str) -> str:
    """The template with every ${place} replaced by its value."""
    return PLACE.sub(lambda match: str(_lookup(match.group(0), context, name)), template)


def _lookup(place: str, context: Any, name: str) -> Any:
    """The value at ${a.b[0].c}."""
    value = context
    match = PLACE.fullmatch(place)
    for step in STEP.findall(match.group(1)) if match else ():
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise GraphError(f"dvc.yaml: stage {name}: {place} is not in params.yaml (no {step!r})") from None
    return value
