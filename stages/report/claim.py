"""The claim as numbers: what every arm of a finished run stands at, what changed, and whether the bar is met.

RankE's claim is that policy-only RL buys reward with fidelity and that co-evolution does not. The bar was fixed before
anything was measured: `BAR` holds it. Differences are paired by seed; intervals and p-values are Student's t over
seeds.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rank_e.config import Params
from rank_e.errors import RankEError
from rank_e.evaluation.student import mean_interval, p_value
from rank_e.io.files import replacing
from stages.report.data import REAL, Difference, Results, against_start, between, factorial_rows, mean, of_decoder

CLAIM = Path("docs/results/claim.json")
"""Where the shipped claim lies in the project's folder."""
ROUNDED = 6  # significant digits of a number in the file

Sign = int
"""+1: the interval must lie above zero, -1: below zero, 0: not below zero as a whole (not down)."""

BAR: dict[str, dict[str, dict[str, Sign]]] = {
    "a": {"frozen-base": {"clip": 1, "reward": 1, "accuracy": 1, "fd": 1, "token_kl": 1}},
    "b": {
        "frozen_tokens:coevolved-original": {"fd": -1, "fd_mid": -1},
        "frozen_tokens:coevolved-affine": {"fd": -1, "fd_mid": -1},
    },
    "c": {"coevolved-frozen": {"fd": -1, "fd_matched": -1, "fd_mid": -1, "clip": 0, "accuracy": 0}},
    "d": {
        "frozen_tokens:coevolved-uniform": {"fd": -1, "fd_mid": -1},
        "frozen_tokens:coevolved-shuffled": {"fd": -1, "fd_mid": -1},
    },
}
BAR_WORDS = {
    "a": "RL on the policy alone buys reward with fidelity",
    "b": "the co-evolved decoder draws the frozen arm's tokens better, and better than the affine control",
    "c": "co-evolution as a whole has better images at no lower agreement with prompts",
    "d": "ranks matter: the decoder is better with them than with uniform and than with shuffled weights",
}
"""What is shown where a bar is met."""


def numbers(results: Results) -> dict[str, Any]:
    """{"seeds", "rounds", "arms", "paired", "by_round", "same_tokens_by_round", "bar"} of the last round.

    arms: {name: {metric: {mean, low, high, n}}}, metrics of a category as "accuracy/colors"; paired: {"frozen-base",
    "frozen_tokens:coevolved-original": {metric: {mean, low, high, p, n, agree, seeds}}}: agree counts the seeds that go
    the mean's way. A bar is true, false, or null where the run has not what it asks for.
    """
    last = results.last
    paired = {f"{a}-{b}": _paired(between(results, a, b, last)) for a, b in (*against_start(results), *results.pairs)}
    for policy, decoder in factorial_rows(results):
        if decoder != "original":
            changed = of_decoder(results, policy, decoder)
            paired[f"{policy}_tokens:{decoder}-original"] = _paired(changed)
    paired |= _between_decoders(results)
    names = [*results.before, *results.arms]
    return {
        "seeds": results.seeds,
        "rounds": last,
        "arms": {name: _levels(results, name) for name in names},
        "paired": paired,
        "by_round": {name: _by_round(results, name) for name in results.arms},
        "same_tokens_by_round": _same_tokens(results),
        "bar": {letter: met(paired, wanted) for letter, wanted in BAR.items()},
    }


def met(paired: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Sign]]) -> bool | None:
    """Whether every interval of `wanted` lies where it must; None where a comparison or its interval is not there."""
    answers: list[bool] = []
    for name, metrics in wanted.items():
        for key, sign in metrics.items():
            found = paired.get(name, {}).get(key)
            if found is None or found["low"] is None:
                return None
            low, high = found["low"], found["high"]
            answers.append(low > 0 if sign > 0 else high < 0 if sign < 0 else high >= 0)
    return all(answers)


def _levels(results: Results, name: str) -> dict[str, Any]:
    """Every metric of an arm (or of base or sft) after the last round, and of each category."""
    found = {}
    for metric in results.metrics:
        for category in ("", *results.categories(metric.key)):
            values = results.by_seed(name, results.last, metric.key, category)
            if name == "base":
                values = dict(list(values.items())[:1])  # one evaluation, which all seeds share
            if values:
                key = f"{metric.key}/{category}" if category else metric.key
                centre, low, high = mean_interval(values.values())
                found[key] = _plain({"mean": centre, "low": low, "high": high, "n": len(values)})
    return found


def _paired(items: Iterable[Difference]) -> dict[str, Any]:
    """Each metric's paired difference."""
    return {item.metric.key: paired_entry(item.values) for item in items}


def paired_entry(values: Mapping[int, float]) -> dict[str, Any]:
    """One metric's differences by seed: mean, interval, p of "no difference", n, how many seeds agree, and each."""
    centre, low, high = mean_interval(values.values())
    agree = sum(value * centre > 0 for value in values.values())
    entry = {"mean": centre, "low": low, "high": high, "p": p_value(values.values()), "n": len(values), "agree": agree}
    return _plain(entry) | {"seeds": {str(seed): _rounded(value) for seed, value in values.items()}}


def _between_decoders(results: Results) -> dict[str, Any]:
    """On the control's tokens: the first treatment's decoder against the affine control and every other arm's."""
    if not results.pairs:
        return {}
    treatment, control = results.pairs[0]
    rows = {decoder for policy, decoder in factorial_rows(results) if policy == control} - {"original", treatment}
    found = {}
    for name in sorted(rows):
        ours, theirs = of_decoder(results, control, treatment), of_decoder(results, control, name)
        by_key = {item.metric.key: item.values for item in theirs}
        gaps = {
            item.metric.key: {s: v - other[s] for s, v in item.values.items() if s in other}
            for item in ours
            if (other := by_key.get(item.metric.key)) is not None  # a matched distance may be untold
        }
        found[f"{control}_tokens:{treatment}-{name}"] = {key: paired_entry(row) for key, row in gaps.items() if row}
    return found


def _by_round(results: Results, name: str) -> dict[str, dict[str, Any]]:
    """The mean over seeds of every metric after each evaluated round, round 0 being the start."""
    rounds = [0, *sorted({cell[2] for cell in results.cells})]
    values = {item: {m.key: mean(results.by_seed(name, item, m.key)) for m in results.metrics} for item in rounds}
    return {str(item): _plain(row) for item, row in values.items()}


def _same_tokens(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """What each decoder does to the same tokens, round by round: the mean difference of every metric."""
    rounds = sorted({cell[1] for cell in results.factorial})
    found = {}
    for policy, decoder in factorial_rows(results):
        if decoder != "original" and policy != REAL:
            gains = {item: of_decoder(results, policy, decoder, item) for item in rounds}
            found[f"{policy}_tokens:{decoder}-original"] = {
                str(item): _plain({gain.metric.key: gain.mean for gain in row}) for item, row in gains.items()
            }
    return found


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _rounded(value) for key, value in row.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{ROUNDED}g}") if isinstance(value, float) else value


def read_claim(project: Path, params: Params) -> dict[str, Any] | None:
    """The shipped claim, where the project has one of this backbone; RankEError where it is damaged."""
    path = project / CLAIM
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = found["backbone"] == params.backbone.name
        found["seeds"], found["paired"], found["bar"]  # what is read of it
    except (ValueError, KeyError, TypeError):
        raise RankEError(f"{path} is no claim: take it from git again, or run `make claim`") from None
    return found if same else None


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def counted(seeds: Sequence[int]) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def settled(entry: Mapping[str, Any] | None) -> bool:
    """Whether a paired entry's interval leaves zero out."""
    return entry is not None and entry["low"] is not None and (entry["low"] > 0 or entry["high"] < 0)
