"""The stages of dvc.yaml with their matrices expanded: DVC's own names, what each is called for, what it waits for.

DVC's own parser expands them. Its index would give the same, but reads dvc.lock as well, which costs `rank-e validate`
another second in a project that has run. Arm, seed and round are what a stage's command says.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from dvc.dvcfile import load_file
from dvc.exceptions import DvcException
from dvc.repo import Repo

from rank_e.errors import RankEError

Chain = tuple[str, int]
"""(arm, seed)"""


class GraphError(RankEError):
    """dvc.yaml cannot be read, names a parameter that params.yaml does not have, or goes in a circle."""


@dataclass(frozen=True)
class Node:
    """One stage of the expanded graph: DVC's name for it, its coordinates (None where it has none), its files."""

    address: str
    name: str
    arm: str | None
    seed: int | None
    round: int | None
    deps: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def label(self) -> str:
        """The node for people: `policy coevolved s0 r2`."""
        seed = None if self.seed is None else f"s{self.seed}"
        number = None if self.round is None else f"r{self.round}"
        return " ".join(part for part in (self.name, self.arm, seed, number) if part is not None)

    @property
    def chain(self) -> Chain | None:
        """The (arm, seed) whose nodes follow each other; None for a node that all share."""
        return None if self.arm is None or self.seed is None else (self.arm, self.seed)


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that one DVC process reproduces one after another, and the names of the groups that it waits for."""

    name: str
    nodes: tuple[Node, ...]
    waits: frozenset[str]

    @property
    def chain(self) -> Chain | None:
        """That of its nodes."""
        return self.nodes[0].chain


def load_graph(project: Path) -> list[Node]:
    """The stages of dvc.yaml with params.yaml, without frozen stages (DVC leaves them alone)."""
    try:
        repo = Repo(str(project))
    except DvcException as error:
        raise GraphError(no_repo(error)) from None
    try:
        resolver = load_file(repo, str(project / "dvc.yaml")).resolver
        entries = {address: resolver.resolve_one(address)[address] for address in resolver.get_keys()}
    except DvcException as error:
        raise GraphError(f"{_line(error)}; correct dvc.yaml or params.yaml") from None
    return [_node(address, entry) for address, entry in entries.items() if not entry.get("frozen", False)]


def no_repo(error: DvcException) -> str:
    """Why DVC cannot open a project, and what helps."""
    text = _line(error)
    fix = (
        "correct .dvc/config"
        if text.startswith("config file")
        else "run in the project's folder, a clone made with git"
    )
    return f"{text}; {fix}"


def _line(error: DvcException) -> str:
    return " ".join(str(error).split())


def _node(address: str, entry: Mapping[str, Any]) -> Node:
    """A resolved entry of dvc.yaml; arm, seed and round are arguments of its command."""
    words = str(entry["cmd"]).split()
    given = dict(pairwise(words))
    seed, number = (None if text is None else int(text) for text in (given.get("--seed"), given.get("--round")))
    deps, outs = (tuple(map(_path, entry.get(kind, ()))) for kind in ("deps", "outs"))
    return Node(address, address.partition("@")[0], given.get("--arm"), seed, number, deps, outs)


def _path(entry: str | Mapping[str, Any]) -> str:
    """The path of a dependency or output, which may carry options as a mapping of one key."""
    return entry if isinstance(entry, str) else next(iter(entry))


def make_groups(nodes: Sequence[Node]) -> list[NodeGroup]:
    """Part the nodes into groups, the first to be done first: round by round, then as in dvc.yaml.

    What carries an arm and seed through a round is one group up to where it forks (policy and decoder both wait for the
    ranking alone), and then one for each branch, so that they can be done side by side. What no later round waits for
    (an evaluation) is a group of its own, for whoever has time; so are the shared nodes of a name and seed that wait
    for the same. GraphError if nodes wait for each other in a circle.
    """
    waits = dependencies(nodes)
    ordered = in_order(nodes, waits)
    carrying = _carrying(ordered, waits)
    heads = _heads([node for node in ordered if node.chain is not None and node.name in carrying], waits)
    parts: dict[tuple[Any, ...], list[Node]] = {}  # by round, and what else keeps them apart
    for node in ordered:
        if node.chain is None:
            inputs = frozenset(other.address for other in waits[node.address])
            parts.setdefault((0, node.name, node.seed, inputs), []).append(node)
        elif node.name in carrying:
            parts.setdefault((_round(node), heads[node.address]), []).append(node)
        else:
            parts.setdefault((node.round or 0, node.address), []).append(node)
    names = {node.address: _group_name(members) for members in parts.values() for node in members}
    groups = []
    for _, members in sorted(parts.items(), key=lambda part: part[0][0]):
        name = names[members[0].address]
        needed = {names[other.address] for node in members for other in waits[node.address]}
        groups.append(NodeGroup(name, tuple(members), frozenset(needed - {name})))
    _require_an_order(groups)
    return groups


def _carrying(nodes: Sequence[Node], waits: Mapping[str, Sequence[Node]]) -> set[str]:
    """Names of the stages that a later round of their chain reads, and of what those read in their own round.

    By name, so that the last round is parted as the others are.
    """
    mates = [(node, other) for node in nodes for other in waits[node.address] if other.chain == node.chain]
    found = {other.name for node, other in mates if (other.round or 0) < (node.round or 0)}
    for node, other in reversed(mates):  # nodes come after what they wait for
        if node.name in found:
            found.add(other.name)
    return found


def _round(node: Node) -> int:
    """The start belongs to the first round."""
    return node.round or 1


def _heads(carrying: Sequence[Node], waits: Mapping[str, Sequence[Node]]) -> dict[str, str]:
    """For the address of each node the first one of its group: unbroken lines of one arm, seed and round.

    A node goes on with the last one that it waits for, unless another one does as well.
    """
    place = {node.address: index for index, node in enumerate(carrying)}
    before: dict[str, str | None] = {}
    for node in carrying:
        mates = [o.address for o in waits[node.address] if o.address in place and _line_of(o) == _line_of(node)]
        before[node.address] = max(mates, key=lambda address: place[address], default=None)
    followers = Counter(before.values())
    heads: dict[str, str] = {}
    for node in carrying:
        previous = before[node.address]
        alone = previous is not None and followers[previous] == 1
        heads[node.address] = heads[previous] if previous is not None and alone else node.address
    return heads


def _line_of(node: Node) -> tuple[Any, ...]:
    return node.chain, _round(node)


def _require_an_order(groups: Sequence[NodeGroup]) -> None:
    """Groups may wait for each other where their nodes do not: an arm that reads from the middle of another's round."""
    left, done = list(groups), set[str]()
    while ready := [group for group in left if group.waits <= done]:
        done |= {group.name for group in ready}
        left = [group for group in left if group not in ready]
    if left:
        raise GraphError(f"dvc.yaml: these wait for each other: {', '.join(group.name for group in left)}")


def _group_name(members: Sequence[Node]) -> str:
    """`policy coevolved s0 r1`, `rollouts to ranking coevolved s0 r1`, or `prompts s0 r1 and 4 more`."""
    first, last = members[0], members[-1]
    if len(members) == 1:
        return last.label
    if last.chain is None:
        return f"{first.label} and {len(members) - 1} more"
    return f"{first.name} to {last.label}"


def dependencies(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """For each address the nodes whose outputs it reads: the same path, one inside it or one around it."""
    writers = {out: node for node in nodes for out in node.outs}
    found: dict[str, list[Node]] = {}
    for node in nodes:
        needed: dict[str, Node] = {}
        for dep in node.deps:
            around = [str(parent) for parent in PurePosixPath(dep).parents]
            for out, writer in writers.items():
                if out == dep or out in around or out.startswith(f"{dep}/"):
                    needed[writer.address] = writer
        needed.pop(node.address, None)
        found[node.address] = list(needed.values())
    return found


def in_order(nodes: Sequence[Node], waits: Mapping[str, Sequence[Node]]) -> list[Node]:
    """The nodes after all that they wait for; by round, then as in dvc.yaml, where that leaves a choice."""
    order = {node.address: (node.round or 0, index) for index, node in enumerate(nodes)}
    left = sorted(nodes, key=lambda node: order[node.address])
    done: set[str] = set()
    found: list[Node] = []
    while left:
        ready = next((n for n in left if all(other.address in done for other in waits[n.address])), None)
        if ready is None:
            raise GraphError(f"dvc.yaml: these wait for each other: {', '.join(node.label for node in left)}")
        left.remove(ready)
        done.add(ready.address)
        found.append(ready)
    return found
