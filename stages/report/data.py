"""The numbers of a finished (or running) pipeline, read from its artifacts and compared in pairs.

All arms share prompts, seeds and the base, so two arms are compared seed by seed: the difference of each pair, their
mean, and a 95 % interval of Student's t over the seeds. Nothing here selects, drops or weights a seed.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rank_e.config import Params
from rank_e.evaluation.student import mean_interval, p_value
from rank_e.evaluation.summary import Nested
from stages.report.metrics import L1, Column, columns_of
from stages.report.sizes import check_sizes
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import artifact_path

BASE, SFT, REAL = "base", "sft", "real"
"""What stands before the arms: the base, and the supervised start where there is one; and the tokens of real images."""

Cell = tuple[str, int, int]
"""(arm, seed, round)"""


@dataclass(frozen=True)
class Difference:
    """Paired differences of one metric: one value per seed, their mean and the 95 % t-interval (None under 2 seeds)."""

    name: str
    metric: Column
    values: dict[int, float]
    mean: float
    low: float | None
    high: float | None

    @property
    def p(self) -> float | None:
        """Two-sided p of Student's paired t-test that nothing changed; None under 2 seeds."""
        return p_value(self.values.values())

    @property
    def better(self) -> int:
        """How many seeds changed for the better."""
        return sum(self.metric.improves(value) is True for value in self.values.values())

    @property
    def verdict(self) -> str:
        """What the interval allows to be said, in one word or two."""
        if self.low is None or self.high is None:
            return "one seed"
        if self.low <= 0 <= self.high:
            return "open"
        improved = self.metric.improves(self.mean)
        return "differs" if improved is None else "better" if improved else "worse"


@dataclass
class Results:
    """Everything that tables and the page show; artifacts not written yet are named in `missing`.

    `supervised`: the arms start from a supervised fine-tuning (`sft`, by seed) and not from the base itself. `pairs`:
    each other arm with the control. `factorial`: by (seed, round), whose tokens, whose decoder.
    """

    backbone: str
    metrics: tuple[Column, ...]
    arms: list[str]
    seeds: list[int]
    rounds: list[int]
    pairs: list[tuple[str, str]]
    supervised: bool
    reference: dict[str, Nested] = field(default_factory=dict)
    base: Nested = field(default_factory=dict)
    sft: dict[int, Nested] = field(default_factory=dict)
    cells: dict[Cell, Nested] = field(default_factory=dict)
    training: dict[Cell, dict[str, float]] = field(default_factory=dict)
    factorial: dict[tuple[int, int], dict[str, dict[str, Nested]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The last round in which any arm has been evaluated, or round 0."""
        return max((cell[2] for cell in self.cells), default=0)

    @property
    def before(self) -> list[str]:
        """What the arms are compared with: the base, and the supervised start where there is one."""
        return [BASE, SFT] if self.supervised else [BASE]

    @property
    def start(self) -> str:
        """What every arm's round 0 is."""
        return self.before[-1]

    def value(self, name: str, seed: int, round_id: int, key: str, category: str = "") -> float | None:
        """One metric (of a category) of an arm in a round, round 0 being its start; or of "base" or "sft"."""
        name = name if round_id or name in self.before else self.start
        if name in self.before:
            found = self.base if name == BASE else self.sft.get(seed, {})
        else:
            found = self.cells.get((name, seed, round_id), {})
        return value_of(found, key, category)

    def by_seed(self, name: str, round_id: int, key: str, category: str = "") -> dict[int, float]:
        """One metric of an arm in a round (or of "base" or "sft"), for each seed that has it."""
        found = {seed: self.value(name, seed, round_id, key, category) for seed in self.seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def first(self, *groups: str) -> Column | None:
        """The first metric of these groups, in the order of the params."""
        return next((metric for metric in self.metrics if metric.group in groups), None)

    def categories(self, key: str) -> list[str]:
        """Names of the prompt categories for which the evaluation reports the metric `key`."""
        return sorted(self.base.get(key, {}).get("categories", {}))

    @property
    def by_category(self) -> tuple[Column, list[str]] | None:
        """The metric to show by category, a share before a score before a benchmark, and its categories."""
        order = sorted(self.metrics, key=lambda metric: (not metric.percent, metric.group != "score"))
        return next(((metric, found) for metric in order if (found := self.categories(metric.key))), None)


def value_of(metrics: Nested, key: str, category: str = "") -> float | None:
    """The value of a metric, or of one of its categories; None where it is not there."""
    entry = metrics.get(key, {})
    return (entry.get("categories", {}).get(category, {}) if category else entry).get("value")


def mean(values: Mapping[int, float] | Sequence[float]) -> float | None:
    """The mean of some seeds' values; None without any."""
    numbers = list(values.values()) if isinstance(values, Mapping) else list(values)
    return sum(numbers) / len(numbers) if numbers else None


def difference(name: str, metric: Column, first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """`first - second` paired by seed: mean and two-sided 95 % Student interval.

    Seeds that only one side has are no pair and are left out; None without any pair.
    """
    values = {seed: first[seed] - second[seed] for seed in first if seed in second}
    return Difference(name, metric, values, *mean_interval(values.values())) if values else None


def between(results: Results, first: str, second: str, round_id: int) -> list[Difference]:
    """Every metric's difference `first - second` in one round; each is an arm, "base" or "sft"."""
    found = []
    for metric in results.metrics:
        sides = [results.by_seed(name, round_id, metric.key) for name in (first, second)]
        found.append(difference(f"{first} − {second}", metric, *sides))
    return [item for item in found if item is not None]


def against_start(results: Results) -> list[tuple[str, str]]:
    """The pairs (name, "base" or "sft") to be compared: every arm with both, and the supervised start with the base."""
    pairs = [(name, start) for start in results.before for name in (*results.before, *results.arms)]
    return [(name, start) for name, start in pairs if name != start and name != BASE]


def of_decoder(
    results: Results, policy: str, decoder: str, round_id: int = 0, other: str = "original"
) -> list[Difference]:
    """What `decoder` does to the same tokens of `policy`: its row of the factorial minus that of the `other` decoder.

    round_id: 0 is the last one.
    """
    found = []
    for metric in factorial_metrics(results):
        sides = [factorial_values(results, policy, name, metric.key, round_id) for name in (decoder, other)]
        found.append(difference(f"{drawn_by(decoder)} − {drawn_by(other)}, on {policy} tokens", metric, *sides))
    return [item for item in found if item is not None]


def drawn_by(decoder: str) -> str:
    """Words for a column of the factorial; the affine control is no decoder of its own."""
    return "affine control" if decoder == "affine" else f"{decoder} decoder"


def factorial_rows(results: Results) -> list[tuple[str, str]]:
    """The (policy, decoder) pairs of the factorial: arms in the order of params, each with the original decoder
    and its affine control first; then the tokens of real images.
    """
    order = ["original", "affine", *results.arms]
    pairs = {(policy, decoder) for table in results.factorial.values() for policy in table for decoder in table[policy]}
    rows = [(policy, decoder) for policy in (*results.arms, REAL) for decoder in order]
    return [row for row in rows if row in pairs]


def factorial_metrics(results: Results, policies: Sequence[str] = ()) -> list[Column]:
    """The metrics that the factorial (of these policies) has: the evaluation's, and the error of reconstructions."""
    rows = [
        row for table in results.factorial.values() for name, row in table.items() if name in policies or not policies
    ]
    cells = [cell for row in rows for cell in row.values()]
    return [metric for metric in (*results.metrics, L1) if any(metric.key in cell for cell in cells)]


def factorial_values(results: Results, policy: str, decoder: str, key: str, round_id: int = 0) -> dict[int, float]:
    """One metric of one row of the factorial, for each seed that has it; round_id: 0 is the last one."""
    tables = {seed: results.factorial.get((seed, round_id or results.last), {}) for seed in results.seeds}
    cells = {seed: table.get(policy, {}).get(decoder, {}) for seed, table in tables.items()}
    return {seed: cell[key]["value"] for seed, cell in cells.items() if key in cell}


def load_results(params: Params, project: Path, partial: bool = False, missing: Collection[str] = ()) -> Results:
    """Read the metrics of every cell of the run in the folder `project`.

    With `partial`, artifacts that do not exist yet are listed in the results' `missing` (for a run in progress);
    otherwise the first one that is not known to be `missing` raises ArtifactError, which names it. SizeError if
    distances are of different sizes.
    """
    control, *others = params.factorial.arms
    pairs = [(arm, control) for arm in others]
    rounds = [item.id for item in params.rounds]
    arms, seeds, supervised = list(params.arms), list(params.seeds), params.sft.train
    results = Results(params.backbone.name, (), arms, seeds, rounds, pairs, supervised, missing=list(missing))
    compared: dict[str, dict[str, Any]] = {}
    reconstructions: dict[str, dict[str, Any]] = {}

    def metrics(path: Path, kind: str) -> dict[str, Any]:
        if str(path) in missing:
            return {}
        if partial and not (project / path).exists():
            results.missing.append(str(path))
            return {}
        artifact = read_artifact(project / path, kind, lineage=not partial)
        if kind == "evaluation" and not results.metrics:  # all evaluations of a run have the same
            results.metrics = columns_of(artifact.json("descriptions"))
        found = artifact.json("metrics")
        if kind in ("evaluation", "factorial"):
            compared[str(path)] = {key: entry for key, entry in found.items() if key != REAL}
        return found

    results.reference = metrics(artifact_path("reference"), "reference")
    results.base = metrics(artifact_path("baseline"), "evaluation")
    for seed in results.seeds if supervised else ():
        found = metrics(artifact_path("sft_evaluation", seed=seed), "evaluation")
        if found:
            results.sft[seed] = found
    for cell in [(arm, seed, item) for arm in results.arms for seed in results.seeds for item in rounds]:
        for kind, target in (("ranking", results.training), ("evaluation", results.cells)):
            if kind == "evaluation" and cell[2] not in params.evaluated:
                continue
            found = metrics(artifact_path(kind, *cell), kind)
            if found:
                target[cell] = found
    for cell in [(arm, s, r) for arm in params.factorial.arms for s in seeds for r in params.evaluated]:
        path = artifact_path("factorial", *cell)
        for policy, row in metrics(path, "factorial").items():
            if policy == REAL:
                reconstructions[str(path)] = row
            table = results.factorial.setdefault(cell[1:], {})
            table[policy] = table.get(policy, {}) | row
    for table in results.factorial.values():
        if (
            REAL in table and results.reference
        ):  # through the original decoder they are the reference's own reconstructions
            table[REAL] = {"original": results.reference["reconstruction"]} | table[REAL]
    if reconstructions and results.reference:
        reconstructions[str(artifact_path("reference"))] = results.reference["reconstruction"]
    distances = [metric.key for metric in results.metrics if metric.group == "distance"]
    for alike in (compared, reconstructions):
        check_sizes(alike, distances)
    results.metrics = tuple(metric.scaled_like(value_of(results.base, metric.key)) for metric in results.metrics)
    return results
