"""What a run has to do: the stages that were chosen and what they need, without those that are as they should be.

DVC is asked once what has changed. A stage is kept where neither it nor anything that it comes from has changed: DVC
would only say so again, at a second a process. The report is no stage here where a part was chosen: it shows what is
there.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline.graph import GraphError, Node, NodeGroup, dependencies, in_order, load_graph, make_groups
from pipeline.lock_text import FIX
from rank_e.config import Params, load
from rank_e.errors import RankEError
from stages.runtime.artifacts import ArtifactError

Cell = tuple[str, int, int]
"""(arm, seed, round)"""


class ChoiceError(RankEError):
    """An arm, seed or stage was chosen that the run does not have."""


@dataclass(frozen=True)
class Choice:
    """The part of a run that is wanted; an empty tuple stands for all, rounds for those up to this one (None: all)."""

    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    rounds: int | None = None

    @property
    def partial(self) -> bool:
        """Whether anything was chosen at all."""
        return bool(self.arms or self.seeds or self.only or self.rounds is not None)

    def __str__(self) -> str:
        """The command line's words for it."""
        pairs = [("arm", self.arms), ("seed", self.seeds), ("only", self.only)]
        words = [f"--{name} {value}" for name, values in pairs for value in values]
        return " ".join([*words, *([] if self.rounds is None else [f"--rounds {self.rounds}"])])

    def near(self, node: Node) -> bool:
        """Whether a node is of the chosen arms, seeds and rounds, or of all."""
        return (
            (not self.arms or node.arm is None or node.arm in self.arms)
            and (not self.seeds or node.seed is None or node.seed in self.seeds)
            and (self.rounds is None or node.round is None or node.round <= self.rounds)
        )


@dataclass(frozen=True)
class Plan:
    """What is to be done: groups of nodes, the first first; and what is known of the rest.

    kept: nodes that are as they should be. left_out: chosen nodes that need what was not chosen and is not there.
    stale: nodes that are neither kept nor to be done. report: whether the report is wanted of what is there.
    """

    groups: list[NodeGroup]
    kept: list[Node]
    left_out: list[Node]
    stale: list[Node]
    report: bool

    @property
    def nodes(self) -> list[Node]:
        """The nodes to be done."""
        return [node for group in self.groups for node in group.nodes]

    @property
    def rounds(self) -> Counter[Cell]:
        """How many nodes of each round of an arm and seed are to be done."""
        cells = ((node.arm, node.seed, node.round) for node in self.nodes)
        return Counter((a, seed, n) for a, seed, n in cells if a is not None and seed is not None and n is not None)

    @property
    def stale_places(self) -> list[str]:
        """The artifacts in the workspace that are not up to date and will not be, relative to the project."""
        return [out for node in self.stale for out in node.outs]

    @property
    def said(self) -> list[str]:
        """The plan in lines."""
        counts = f"{len(self.nodes)} stages to do, {len(self.kept)} are as they should be"
        lines = [counts if self.nodes else f"nothing to do: {len(self.kept)} stages are as they should be"]
        if self.left_out:
            lines.append(f"left out: {some(_labels(self.left_out))}: what they need was not chosen and is not there")
        others = [node for node in self.stale if node not in self.left_out]
        if others:
            lines.append(f"not chosen and not up to date: {some(_labels(others))}")
        return lines


def _labels(nodes: Sequence[Node]) -> list[str]:
    return [node.label for node in nodes]


def some(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def make_plan(project: Path, choice: Choice) -> Plan:
    """What is to be done in a project now; ChoiceError names what the run does not have."""
    nodes = load_graph(project)
    waits = dependencies(nodes)
    unchanged = unchanged_nodes(project)
    kept: set[str] = set()
    for node in in_order(nodes, waits):
        if node.address in unchanged and all(other.address in kept for other in waits[node.address]):
            kept.add(node.address)
    wanted, left_out = select(nodes, choice, kept)
    todo = wanted - kept
    groups = make_groups(nodes)
    alive = [replace(group, nodes=tuple(node for node in group.nodes if node.address in todo)) for group in groups]
    names = {group.name for group in alive if group.nodes}
    stale = [node for node in nodes if node.address not in kept | todo]
    return Plan(
        [replace(group, waits=group.waits & names) for group in alive if group.nodes],
        [node for node in nodes if node.address in kept],
        left_out,
        [node for node in stale if not (choice.partial and _reads_folder(node, nodes))],
        choice.partial and any(_reads_folder(node, nodes) and _named(node, choice) for node in nodes),
    )


def write_part(project: Path, plan: Plan) -> str:
    """Write the report of what is there after a part was run; a line that says so, or why there is none."""
    from stages.report.writing import write_report  # slow

    try:
        return (
            f"report of what is there: {write_report(load(project / 'params.yaml'), project, stale=plan.stale_places)}"
        )
    except ArtifactError as error:
        return f"no report yet: {error}"


def unchanged_nodes(project: Path) -> set[str]:
    """The addresses of the stages of dvc.yaml that DVC finds unchanged by themselves."""
    try:
        with Repo(str(project)) as repo, repo.lock:
            main = str(project.resolve() / "dvc.yaml")
            stages = [stage for stage in repo.index.stages if str(Path(stage.path).resolve()) == main]
            return {stage.name for stage in stages if not stage.changed()}
    except DvcException as error:
        text = " ".join(str(error).split())
        fix = FIX if "dvc.lock" in text else "end what else works with DVC here, or correct dvc.yaml or params.yaml"
        raise GraphError(f"{text}; {fix}") from None


def select(nodes: Sequence[Node], choice: Choice, kept: Collection[str]) -> tuple[set[str], list[Node]]:
    """The addresses of the chosen nodes and of all that they need; and chosen nodes that are left out.

    Left out is what needs another arm or seed that was not chosen, where that is not up to date, unless the stage was
    chosen by name: `factorial` follows what is there. So does what reads a folder of everybody's artifacts, the report,
    which is no node of a part. ChoiceError where nothing is chosen.
    """
    if not choice.partial:
        return {node.address for node in nodes}, []
    _check(nodes, choice)
    waits = dependencies(nodes)
    wanted, left_out = set[str](), []
    for node in nodes:
        if _reads_folder(node, nodes) or not (choice.near(node) and _named(node, choice)):
            continue
        needed = _ancestors(node, waits)
        foreign = [other for other in needed if not choice.near(other) and other.address not in kept]
        if foreign and node.name not in choice.only:
            left_out.append(node)
        else:
            wanted |= {node.address, *(other.address for other in needed)}
    return wanted, left_out


def _named(node: Node, choice: Choice) -> bool:
    return not choice.only or node.name in choice.only


def check_choice(project: Path, choice: Choice, params: Params) -> None:
    """ChoiceError for what the run of these params does not have, before anything waits or params.yaml is replaced."""
    if choice.partial:
        stages = {node.name for node in load_graph(project)}
        _has(choice, set(params.arms), set(map(str, params.seeds)), stages, params.last_round)


def _check(nodes: Sequence[Node], choice: Choice) -> None:
    """ChoiceError for what no node has."""
    arms = {node.arm for node in nodes if node.arm is not None}
    seeds = {str(node.seed) for node in nodes if node.seed is not None}
    last = max((node.round for node in nodes if node.round is not None), default=0)
    _has(choice, arms, seeds, {node.name for node in nodes}, last)
    if not any(choice.near(node) and _named(node, choice) for node in nodes):
        raise ChoiceError(f"{choice}: no stage is of all these")


def _has(choice: Choice, arms: Collection[str], seeds: Collection[str], stages: Collection[str], last: int) -> None:
    asked = (("arm", choice.arms, arms), ("seed", map(str, choice.seeds), seeds), ("only", choice.only, stages))
    for name, values, known in asked:
        for value in values:
            if value not in known:
                raise ChoiceError(f"{name} {value}: the run of params.yaml has {', '.join(sorted(known))}")
    if choice.rounds is not None and choice.rounds > last:
        raise ChoiceError(f"rounds {choice.rounds}: the run of params.yaml has {last}")


def _reads_folder(node: Node, nodes: Sequence[Node]) -> bool:
    """Whether a node reads a folder around others' outputs, whatever is in there."""
    return any(out.startswith(f"{dep}/") for dep in node.deps for other in nodes for out in other.outs)


def _ancestors(node: Node, waits: dict[str, list[Node]]) -> list[Node]:
    """All that a node comes from."""
    found: dict[str, Node] = {}
    left = list(waits[node.address])
    while left:
        other = left.pop()
        if other.address not in found:
            found[other.address] = other
            left += waits[other.address]
    return list(found.values())
