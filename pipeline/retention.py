"""`rank-e gc`: which files of a run nobody needs any more, by the rounds that are to be kept.

A round's weights and optimiser states are read by the next round, by its evaluation, and by whoever goes on from it or
exports it. After that they only take room. What is kept whole: round 0, the last round of each arm and seed, those that
`--keep` names, and any of which something is not done, its evaluation say; of a round that is evaluated the EMA weights
too, so that a change of evaluation needs no training. Manifests, logs, metrics, rankings and evaluations stay: tables,
pages and lineage read those.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from pipeline.graph import Node
from rank_e.config import Params
from rank_e.errors import RankEError
from rank_e.io.files import gigabytes
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import WORK
from stages.runtime.usage import read_usage

Chain = tuple[str, int]
"""An arm and a seed."""
TRAINING = ("rollouts", "ranking", "policy", "decoder")
"""The stages that carry an arm from round to round."""
USUAL = "last,best,every=10"
"""What is kept if nothing else is said."""
DROPPED = ("optimizer", "online", "ema")
"""What goes if nothing else is said, in this order."""
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "optimizer": {"policy": ("optimizer",), "decoder": ("optimizer", "discriminator")},
    "online": {"policy": ("online",), "decoder": ("online",)},
    "ema": {"policy": ("ema",), "decoder": ("ema",)},
    "rollouts": {"rollouts": ("rollouts",)},
    "prompts": {"prompts": ("text",)},
}
"""What can be dropped: for each stage's artifact its safetensors."""


@dataclass(frozen=True)
class Keep:
    """The rounds to keep beside the last: multiples of `every`, and the best of those evaluated by a metric's key."""

    every: int | None = None
    best: str | None = None

    def rounds(self, params: Params) -> list[int]:
        """The rounds that are kept whatever the metrics say."""
        ids = [item.id for item in params.rounds]
        return [number for number in ids if number == ids[-1] or (self.every and number % self.every == 0)]


def read_keep(text: str) -> Keep:
    """`last,best,every=10` as data; RankEError where a word is none of these, or `last` is not there."""
    words = dict.fromkeys(text.replace(" ", "").split(","))
    every, best = None, None
    for word in words:
        name, _, value = word.partition("=")
        if name == "every" and value.isdecimal() and len(value) < 10 and int(value) > 0:
            every = int(value)
        elif name == "best" and (value or "=" not in word):
            best = value or "reward"
        elif word != "last":
            raise RankEError(f"--keep {text}: {word!r} is none of last, best, best=METRIC, every=N")
    if "last" not in words:
        raise RankEError(f"--keep {text}: name last too, which the next round begins from")
    return Keep(every, best)


def read_dropped(text: str) -> tuple[str, ...]:
    """`optimizer,online` as data; RankEError where a word is no kind."""
    words = tuple(text.replace(" ", "").split(","))
    if wrong := [word for word in words if word not in FILES]:
        raise RankEError(f"--drop {text}: {', '.join(wrong)} is none of {', '.join(FILES)}")
    return words


@dataclass(frozen=True)
class File:
    """A file that can go: what it is, its artifact's node and folder, its name, bytes, and hash in DVC."""

    kind: str
    node: Node
    folder: str
    name: str
    bytes: int
    md5: str


Content = Mapping[str, Mapping[str, tuple[str, int]]]
"""{an output's path: {a file in it: (md5, bytes)}}, of all that DVC has recorded."""


def rounds_done(nodes: Sequence[Node], stale: Collection[str]) -> dict[Chain, int]:
    """The round of each arm and seed up to which all that trains is what DVC would make now; 0: not even the first."""
    rounds: dict[Chain, dict[int, bool]] = defaultdict(dict)
    for node in nodes:
        if node.chain is not None and node.round is not None and node.name in TRAINING:
            before = rounds[node.chain].get(node.round, True)
            rounds[node.chain][node.round] = before and node.address not in stale
    return {
        chain: len(list(takewhile(bool, (done for _, done in sorted(found.items())))))
        for chain, found in rounds.items()
    }


def kept_rounds(params: Params, keep: Keep, nodes: Sequence[Node], stale: Collection[str]) -> dict[Chain, set[int]]:
    """For each arm and seed the rounds that stay whole: the kept ones, and all from the last that is done on."""
    found = {}
    for chain, last in rounds_done(nodes, stale).items():
        chosen = {0, *keep.rounds(params), *range(last, params.last_round + 1)}
        chosen |= {n.round for n in nodes if n.chain == chain and n.round is not None and n.address in stale}
        if keep.best is not None:
            evaluations = [n for n in nodes if n.name == "evaluation" and n.chain == chain and n.address not in stale]
            chosen |= best_round(evaluations, keep.best)
        found[chain] = chosen
    return found


def best_round(evaluations: Iterable[Node], metric: str) -> set[int]:
    """The round of the best value of a metric, the earliest of equals; none without evaluations."""
    values: dict[int, float] = {}
    for node in evaluations:
        artifact = read_artifact(node.outs[0], "evaluation", lineage=False)
        better = {row["key"]: row["better"] for row in artifact.json("descriptions")}
        if better.get(metric) not in ("higher", "lower"):
            known = ", ".join(key for key, way in better.items() if way != "nearer")
            raise RankEError(f"--keep best={metric}: no such metric that has a better; there are {known}")
        value = artifact.json("metrics")[metric]["value"]
        values[node.round or 0] = value if better[metric] == "lower" else -value
    return {min(values, key=lambda number: (values[number], number))} if values else set()


def files_to_drop(
    params: Params,
    nodes: Sequence[Node],
    stale: Collection[str],
    kept: Mapping[Chain, Collection[int]],
    dropped: Sequence[str],
    content: Content,
) -> list[File]:
    """The files that go, those of one kind after those of the one before; only what no kept artifact shares."""
    found = []
    for kind in dropped:
        for node in nodes:
            names = FILES[kind].get(node.name)
            if names is None or node.address in stale or not _past(kind, node, params, kept):
                continue
            for folder in node.outs:
                entries = content.get(folder, {})
                for name in (f"{name}.safetensors" for name in names):
                    if name in entries:
                        md5, size = entries[name]
                        found.append(File(kind, node, folder, name, size, md5))
    gone = {(file.folder, file.name) for file in found}
    needed = set(referenced(content, gone))
    return [file for file in found if file.md5 not in needed]


def referenced(content: Content, gone: Collection[tuple[str, str]]) -> Iterator[str]:
    """The hashes of all recorded files but those that go."""
    for folder, entries in content.items():
        yield from (md5 for name, (md5, _) in entries.items() if (folder, name) not in gone)


def _past(kind: str, node: Node, params: Params, kept: Mapping[Chain, Collection[int]]) -> bool:
    """Whether nobody needs this kind of the node's files any more."""
    number = node.round
    if number is None:
        return False
    if kind == "ema" and number in params.evaluated:
        return False
    if kind == "rollouts" and number == 1:  # the guard of token drift compares with them
        return False
    chains = [chain for chain in kept if node.chain in (chain, None) and node.seed == chain[1]]
    return bool(chains) and all(number not in kept[chain] for chain in chains)


def cost(project: Path, files: Sequence[File]) -> str:
    """What the dearest removed state would cost if it were wanted again, as its rounds took."""
    rounds: dict[tuple[str, Chain], set[int]] = defaultdict(set)
    for file in files:
        if file.node.name in ("policy", "decoder") and file.node.chain and file.node.round:
            rounds[file.node.name, file.node.chain].add(file.node.round)
    longest: tuple[float, int, str] = (0.0, 0, "")
    for (name, (arm, seed)), numbers in rounds.items():
        run: list[int] = []
        for number in sorted(numbers):
            run = [*run, number] if run and number == run[-1] + 1 else [number]
            seconds = sum(_seconds(project, name, arm, seed, each) for each in run)
            longest = max(longest, (seconds, len(run), f"{name} {arm} s{seed} r{number}"))
    seconds, count, label = longest
    if not label:
        return "asked for again, none of it needs training"
    took = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
    return f"asked for again, {label} is {count} rounds' work from the state kept before it: {took}, as they took"


def _seconds(project: Path, name: str, arm: str, seed: int, number: int) -> float:
    path = project / WORK / "usage" / f"{name}-{arm}-s{seed}-r{number}.json"
    usage = read_usage(path, "seconds")
    return 0.0 if usage is None else float(usage["seconds"])


def described(
    kept: Mapping[Chain, Collection[int]],
    last: Mapping[Chain, int],
    files: Sequence[File],
    freed: Collection[tuple[Chain, int]],
) -> list[str]:
    """What stays and what goes, in lines; freed: the rounds that lost files earlier."""
    lines = []
    for chain, rounds in kept.items():
        stay = sorted(number for number in rounds if number <= last[chain])
        whole = spans([number for number in stay if (chain, number) not in freed])
        parts = spans([number for number in stay if (chain, number) in freed])
        line = f"kept whole of {chain[0]} s{chain[1]}: rounds {whole}"
        lines.append(f"{line}; what is left of {parts}, freed before" if parts else line)
    for kind in dict.fromkeys(file.kind for file in files):
        chosen = [file for file in files if file.kind == kind]
        numbers = spans(sorted({file.node.round or 0 for file in chosen}))
        size = sum({file.md5: file.bytes for file in chosen}.values())
        lines.append(f"{kind}: {gigabytes(size)} in {len(chosen)} files of rounds {numbers}")
    return lines


def spans(numbers: Sequence[int]) -> str:
    """Sorted whole numbers as text: 1-9, 11."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
