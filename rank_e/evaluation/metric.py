"""What a metric says of itself: its name, unit, direction and meaning, for tables, charts and trackers alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rank_e.config import EvaluationParams
from rank_e.errors import RankEError

Direction = Literal["higher", "lower", "nearer"]
Group = Literal["distance", "score", "benchmark", "tokens"]


@dataclass(frozen=True)
class Metric:
    """A metric's name, which way is better ("nearer": to real images), what it says, its unit and decimals.

    `unit` "%" is a share in [0, 1], printed times 100. `decimals` None is a scale that is not known beforehand: four
    significant digits then. RankEError for another direction.
    """

    name: str
    better: Direction
    meaning: str
    unit: str = ""
    decimals: int | None = None

    def __post_init__(self) -> None:
        if self.better not in get_args(Direction):
            raise RankEError(f"metric {self.name}: better = {self.better!r}; give {', '.join(get_args(Direction))}")

    def described(self, key: str, group: Group) -> dict[str, Any]:
        """This metric as JSON holds it, with the `key` of its values in metrics.json and what kind of metric it is."""
        return {"key": key, "group": group, **asdict(self)}


REWARD = Metric("Reward", "higher", "the score that the policy and the decoder were trained on")
TOKEN_KL = Metric(
    "Token KL", "lower", "divergence of the sampled tokens from those of real images: the covariate shift", decimals=4
)
TOKEN_ENTROPY = Metric(
    "Token entropy", "nearer", "entropy of the tokens in bits; it falls when the policy loses variety", decimals=3
)
ALWAYS = ("reward", "token_kl", "token_entropy")
"""Keys of what every evaluation measures, whatever the params name."""
RESERVED = (*ALWAYS, "images", "original")


def check_names(params: EvaluationParams) -> None:
    """RankEError in one line where two metrics, or a metric and another entry of metrics.json, have one name."""
    taken = dict.fromkeys(RESERVED, "metrics.json")
    named = [(f"distances.{name}", name) for name in params.distances]
    named += [(f"scores.{name}", name) for name in params.scores]
    for name, benchmark in params.benchmarks.items():
        keys = [f"{name}_{score}" for score in benchmark.scores] if benchmark.kind == "prompts" else [name]
        named += [(f"benchmarks.{name}", key) for key in keys]
    for place, key in named:
        if key in taken:
            raise RankEError(f"evaluation.{place}: the name {key} is taken by {taken[key]}; choose another")
        taken[key] = f"evaluation.{place}"
