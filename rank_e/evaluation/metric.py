"""What a metric says of itself: its name, unit, direction and meaning, for tables, charts and trackers alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

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
