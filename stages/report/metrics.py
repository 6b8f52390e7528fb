"""The columns of the report: every metric of a run, as its evaluations describe it, and how its values are written."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rank_e.evaluation.metric import Group, Metric


@dataclass(frozen=True, kw_only=True)
class Column(Metric):
    """A metric with its key in metrics.json and what kind of metric it is."""

    key: str
    group: Group

    @property
    def percent(self) -> bool:
        """Whether values are shares, printed times 100."""
        return self.unit == "%"

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
        decimals = decimals_for(scaled) if self.decimals is None else self.decimals
        written = f"{scaled:+.{decimals}f}" if signed else f"{scaled:.{decimals}f}"
        unit = "pp" if self.percent and signed else self.unit  # a difference of shares is in percentage points
        return f"{written} {unit}".rstrip().replace("-", "−")

    def improves(self, difference: float) -> bool | None:
        """Whether a difference is for the better; None when it is zero or the metric cannot tell."""
        if difference == 0 or self.better == "nearer":
            return None
        return (difference > 0) == (self.better == "higher")

    def scaled_like(self, value: float | None) -> "Column":
        """This metric with the decimals that suit `value`, so that all its values and differences have the same."""
        known = self.decimals is not None or value is None
        return self if known else replace(self, decimals=decimals_for(value or 0.0))


L1 = Column(
    name="Reconstruction L1",
    better="lower",
    meaning="mean absolute error of real images through encoder, codes and decoder",
    decimals=4,
    key="l1",
    group="distance",
)
"""What the factorial alone has: whether a decoder still draws real images."""


def decimals_for(value: float) -> int:
    """Decimals that show four significant digits of `value`: between 1 and 6, and 4 for zero."""
    return min(6, max(1, 3 - math.floor(math.log10(abs(value))))) if value else 4


def columns_of(descriptions: Sequence[dict[str, Any]]) -> tuple[Column, ...]:
    """The columns of what an evaluation's descriptions.json holds, in its order; one name of two gets its key added."""
    found = [Column(**row) for row in descriptions]
    names = Counter(column.name for column in found)
    return tuple(replace(c, name=f"{c.name} ({c.key})") if names[c.name] > 1 else c for c in found)
