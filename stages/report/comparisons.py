"""Every comparison of a run in one form, and what may be said of it: for the page, the terminal and programs alike.

An interval is Student's, 95 %, over seeds, and says of how many; where it leaves zero out, a metric is better or worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.report.data import Difference, Results, against_start, between, drawn_by, factorial_rows, of_decoder

ONE_SEED = "one seed (n = 1) has no interval: nothing is settled"


@dataclass(frozen=True)
class Comparison:
    """Paired differences `first - second` of every metric; `tokens`: the policy whose tokens both decoders draw."""

    first: str
    second: str
    items: list[Difference]
    tokens: str = ""

    @property
    def title(self) -> str:
        """Such as "coevolved − frozen", or "coevolved decoder − original decoder, on frozen tokens"."""
        return f"{self.first} − {self.second}" + (f", on {self.tokens} tokens" if self.tokens else "")


def comparisons(results: Results) -> list[Comparison]:
    """Arms with the control, everyone with what came before, then decoders on the same tokens, after the last round."""
    pairs = [*results.pairs, *against_start(results)]
    found = [Comparison(first, second, between(results, first, second, results.last)) for first, second in pairs]
    rows = [(policy, decoder, "original") for policy, decoder in factorial_rows(results) if decoder != "original"]
    for treatment, control in results.pairs[:1]:
        rows.append((control, treatment, "affine"))
    for policy, decoder, other in rows:
        items = of_decoder(results, policy, decoder, other=other)
        found.append(Comparison(drawn_by(decoder), drawn_by(other), items, policy))
    return [comparison for comparison in found if comparison.items]


def verdict(items: Sequence[Difference]) -> str:
    """What the intervals of a comparison allow to be said, in words: its metrics by their reading."""
    found: dict[str, list[str]] = {}
    for item in items:
        found.setdefault(item.verdict, []).append(item.metric.name)
    if "one seed" in found:
        return ONE_SEED
    readings = [name for name in ("better", "worse", "differs", "open") if name in found]
    return "; ".join(f"{name}: {', '.join(found[name])}" for name in readings)


def seeds_text(count: int) -> str:
    """How many seeds, such as "n = 5 seeds"."""
    return f"n = {count} seed{'' if count == 1 else 's'}"


def interval_text(item: Difference) -> str:
    """The 95 % interval as [low, high]; a dash where there is none."""
    if item.low is None or item.high is None:
        return "–"
    return f"[{item.metric.text(item.low, True)}, {item.metric.text(item.high, True)}]"


def p_text(p: float | None) -> str:
    """A p-value with three decimals; a dash where there is none."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def agreeing(item: Difference) -> str:
    """How many of the n seeds changed for the better, such as "4/5"; "–/5" where the metric cannot tell."""
    return f"{'–' if item.metric.better == 'nearer' else item.better}/{len(item.values)}"
