"""The numbers of a finished (or running) pipeline, read from its artifacts and compared in pairs.

All arms share prompts, seeds and the base, so two arms are compared seed by seed: the difference of each
pair, their mean, and a 95 % interval of Student's t over the seeds. Nothing here selects, drops or weights
a seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rank_e.config import Params
from stages.artifacts import read_artifact
from stages.runtime import artifact_path

Better = Literal["higher", "lower", "nearer"]


@dataclass(frozen=True)
class Metric:
    """One column of the report: its key in metrics.json, its name, which way is better and what it says."""

    key: str
    name: str
    better: Better
    decimals: int
    meaning: str
    percent: bool = False

    @property
    def direction(self) -> str:
        """The direction in words, as tables and the page print it."""
        return "nearer to real is better" if self.better == "nearer" else f"{self.better} is better"

    @property
    def arrow(self) -> str:
        """The direction as one sign."""
        return {"higher": "↑", "lower": "↓", "nearer": "≈"}[self.better]

    def text(self, value: float | None, signed: bool = False) -> str:
        """`value` in this metric's unit and precision; a dash where it is not there."""
        if value is None or not math.isfinite(value):
            return "–"
        scaled = value * 100 if self.percent else value
        written = f"{scaled:+.{self.decimals}f}" if signed else f"{scaled:.{self.decimals}f}"
        unit = (" pp" if signed else " %") if self.percent else ""  # a difference of shares is in percentage points
        return (written + unit).replace("-", "−")

    def improves(self, difference: float) -> bool | None:
        """Whether a difference is for the better; None when it is zero or the metric cannot tell."""
        if difference == 0 or self.better == "nearer":
            return None
        return (difference > 0) == (self.better == "higher")


METRICS = (
    Metric(
        "accuracy",
        "Accuracy",
        "higher",
        1,
        "share of pictures in which the exact checker finds what the prompt says",
        True,
    ),
    Metric(
        "clip",
        "CLIP score",
        "higher",
        2,
        "agreement of picture and prompt, 100 cos, by a network that no update ever saw",
    ),
    Metric("reward", "Reward", "higher", 2, "the score that the policy and the decoder were trained on"),
    Metric("fd", "FD", "lower", 2, "Fréchet distance to real pictures, the evaluator's last features"),
    Metric("fd_mid", "Mid-level FD", "lower", 2, "Fréchet distance of the evaluator's middle features"),
    Metric("fd_patch", "Patch FD", "lower", 2, "Fréchet distance of random patches: texture and edges"),
    Metric(
        "token_kl",
        "Token KL",
        "lower",
        4,
        "divergence of the sampled tokens from those of real pictures: the covariate shift",
    ),
    Metric(
        "token_entropy",
        "Token entropy",
        "nearer",
        3,
        "entropy of the tokens in bits; it falls when the policy loses variety",
    ),
)
METRIC = {metric.key: metric for metric in METRICS}
Cell = tuple[str, int, int]
"""(arm, seed, round)"""


@dataclass(frozen=True)
class Difference:
    """Paired differences of one metric: one value per seed, their mean and the 95 % t-interval (None under 2
    seeds)."""

    name: str
    metric: Metric
    values: dict[int, float]
    mean: float
    low: float | None
    high: float | None

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
            return "not settled"
        improved = self.metric.improves(self.mean)
        return "differs" if improved is None else "better" if improved else "worse"


@dataclass
class Results:
    """Everything that tables and the page show; artifacts not written yet are named in `missing`."""

    backbone: str
    arms: list[str]
    seeds: list[int]
    rounds: list[int]
    pair: tuple[str, str] | None
    reference: dict[str, float] = field(default_factory=dict)
    base: dict[str, float] = field(default_factory=dict)
    cells: dict[Cell, dict[str, float]] = field(default_factory=dict)
    training: dict[Cell, dict[str, float]] = field(default_factory=dict)
    factorial: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The last round in which any arm has been evaluated, or round 0."""
        return max((cell[2] for cell in self.cells), default=0)

    def value(self, arm: str, seed: int, round_id: int, key: str) -> float | None:
        """One metric of one cell; round 0 is the base itself, the same for every arm and seed."""
        source = self.base if round_id == 0 else self.cells.get((arm, seed, round_id), {})
        return source.get(key)

    def by_seed(self, arm: str, round_id: int, key: str) -> dict[int, float]:
        """One metric of an arm in a round, for each seed that has it."""
        found = {seed: self.value(arm, seed, round_id, key) for seed in self.seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def categories(self) -> list[str]:
        """Names of the prompt categories that the evaluation reports, without the prefix `accuracy_`."""
        return sorted(
            key.removeprefix("accuracy_")
            for key in self.base
            if key.startswith("accuracy_") and not key.endswith(("_low", "_high")) and "@" not in key
        )


def mean(values: Mapping[int, float] | Sequence[float]) -> float | None:
    """The mean of some seeds' values; None without any."""
    numbers = list(values.values()) if isinstance(values, Mapping) else list(values)
    return sum(numbers) / len(numbers) if numbers else None


def difference(name: str, metric: Metric, first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """`first - second` paired by seed: mean and two-sided 95 % Student interval with n - 1 degrees of
    freedom.

    Seeds that only one side has are no pair and are left out; None without any pair.
    """
    values = {seed: first[seed] - second[seed] for seed in first if seed in second}
    if not values:
        return None
    count, centre = len(values), sum(values.values()) / len(values)
    if count < 2:
        return Difference(name, metric, values, centre, None, None)
    from scipy.stats import t  # slow to import, and only needed here

    variance = sum((value - centre) ** 2 for value in values.values()) / (count - 1)
    half = float(t.ppf(0.975, count - 1)) * math.sqrt(variance / count)
    return Difference(name, metric, values, centre, centre - half, centre + half)


def between_arms(results: Results, first: str, second: str, round_id: int) -> list[Difference]:
    """Every metric's difference `first - second` in one round; `second` may be "base"."""
    found = []
    for metric in METRICS:
        left = results.by_seed(first, round_id, metric.key)
        if second == "base":
            right = {seed: results.base[metric.key] for seed in results.seeds if metric.key in results.base}
        else:
            right = results.by_seed(second, round_id, metric.key)
        found.append(difference(f"{first} − {second}", metric, left, right))
    return [item for item in found if item is not None]


def of_decoder(results: Results, policy: str, decoder: str) -> list[Difference]:
    """What `decoder` does to the same tokens of `policy`: its row of the factorial minus the original
    decoder's."""
    found = []
    for metric in METRICS:
        sides = [
            {
                seed: rows[f"{policy}/{name}"][metric.key]
                for seed, rows in results.factorial.items()
                if metric.key in rows.get(f"{policy}/{name}", {})
            }
            for name in (decoder, "original")
        ]
        found.append(difference(f"{drawn_by(decoder)} − original decoder, on {policy} tokens", metric, *sides))
    return [item for item in found if item is not None]


def drawn_by(decoder: str) -> str:
    """Words for a column of the factorial; the affine control is no decoder of its own."""
    return "affine control" if decoder == "affine" else f"{decoder} decoder"


def factorial_rows(results: Results) -> list[tuple[str, str]]:
    """The (policy, decoder) pairs of the factorial: arms in the order of params, each with the original decoder
    and its affine control first."""
    pairs = {tuple(name.split("/", 1)) for rows in results.factorial.values() for name in rows}
    order = ["original", "affine", *results.arms]
    return [(policy, decoder) for policy in results.arms for decoder in order if (policy, decoder) in pairs]


def load_results(params: Params, project: Path, partial: bool = False) -> Results:
    """Read the metrics of every cell of the run in the folder `project`.

    With `partial`, artifacts that do not exist yet are listed in `missing` (for a run in progress);
    otherwise the first one raises ArtifactError, which names it.
    """
    # The factorial's first arm is the control, its second the treatment; a single arm leaves nothing to pair.
    compared = params.factorial.arms
    pair = (compared[1], compared[0]) if len(compared) > 1 else None
    rounds = [item.id for item in params.rounds]
    results = Results(params.backbone.name, list(params.arms), list(params.seeds), rounds, pair)

    def metrics(path: Path, kind: str) -> dict:
        if partial and not (project / path).exists():
            results.missing.append(str(path))
            return {}
        return read_artifact(project / path, kind).json("metrics")

    results.reference = metrics(artifact_path("reference"), "reference")
    results.base = metrics(artifact_path("baseline"), "evaluation")
    for cell in [(arm, seed, item) for arm in results.arms for seed in results.seeds for item in rounds]:
        for kind, target in (("ranking", results.training), ("evaluation", results.cells)):
            found = metrics(artifact_path(kind, *cell), kind)
            if found:
                target[cell] = found
    for seed in results.seeds:
        rows = metrics(artifact_path("factorial", seed=seed), "factorial")
        if rows:
            results.factorial[seed] = rows
    return results
