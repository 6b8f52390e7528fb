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
class Plan:
    """The order of work: what chains need, then chains that may run side by side, then what needs chains.

    `before` and `after` are levels: the stages of one level do not need each other. `beside` is shared work
    that no chain needs: it may run along with them.
    """

    before: tuple[tuple[Stage, ...], ...]
    chains: dict[tuple[str, int], tuple[Stage, ...]]
    beside: tuple[Stage, ...]
    after: tuple[tuple[Stage, ...], ...]

    @property
    def stages(self) -> list[Stage]:
        """All stages in an order that respects every dependency."""
        chains = itertools.chain(self.beside, *self.chains.values())
        return [*itertools.chain(*self.before), *chains, *itertools.chain(*self.after)]


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


def make_plan(stages: Sequence[Stage]) -> Plan:
    """Order the stages by what they read, and part them into shared, chains, and final ones.

    GraphError if stages wait for each other in a circle, or a chain reads from another chain.
    """
    waits = dependencies(stages)
    ordered = _sorted(stages, waits)
    late: set[str] = set()  # everything that needs some chain
    for stage in ordered:
        if any(other.chain is not None or other.address in late for other in waits[stage.address]):
            late.add(stage.address)
    chains: dict[tuple[str, int], list[Stage]] = {}
    for stage in ordered:
        if stage.chain is None:
            continue
        strangers = [other for other in waits[stage.address] if other.chain not in (None, stage.chain)]
        if strangers or any(other.chain is None and other.address in late for other in waits[stage.address]):
            raise GraphError(f"dvc.yaml: {stage.label} needs another arm or seed: arms must be independent")
        chains.setdefault(stage.chain, []).append(stage)
    needed: set[str] = set()  # everything that some chain needs, itself or through others
    for stage in reversed(ordered):
        if stage.chain is not None or stage.address in needed:
            needed.update(other.address for other in waits[stage.address])
    shared = [stage for stage in ordered if stage.chain is None]
    early = [stage for stage in shared if stage.address not in late]
    return Plan(
        _levels([stage for stage in early if stage.address in needed], waits),
        {chain: tuple(members) for chain, members in chains.items()},
        tuple(stage for stage in early if stage.address not in needed),
        _levels([stage for stage in shared if stage.address in late], waits),
    )


def _levels(ordered: Sequence[Stage], waits: Mapping[str, Sequence[Stage]]) -> tuple[tuple[Stage, ...], ...]:
    """Part sorted stages so that each level needs only earlier ones (and stages outside)."""
    depth: dict[str, int] = {}
    for stage in ordered:
        inner = [depth[other.address] for other in waits[stage.address] if other.address in depth]
        depth[stage.address] = max(inner, default=-1) + 1
    count = max(depth.values(), default=-1) + 1
    return tuple(tuple(s for s in ordered if depth[s.address] == level) for level in range(count))


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
            raise GraphError(f"dvc.yaml: these stages wait for each other: {', '.join(s.label for s in left)}")
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
