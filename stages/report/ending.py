"""What a run prints at its end: one table of what changed and what of it is settled, at most 30 lines of 80 columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.report.claim import CLAIM, counted, settled
from stages.report.data import BASE, Difference, Results, between, mean, of_decoder
from stages.report.metrics import Column

WIDTH = 80
NAME, LEVELS, CHANGE = 15, (8, 9, 10), 9
MOST = 10  # metrics that the first table has room for, and the second
OF_DECODER = ("fd", "fd_mid", "fd_patch", "fd_matched", "clip", "accuracy")
OF_ARMS = (*OF_DECODER, "reward")
"""The metrics that are told of a decoder and of two arms, where the run has any of them."""


def ending(results: Results, claim: Mapping[str, Any] | None) -> str:
    """The text; `claim`: the shipped claim's numbers, whose intervals say what is settled (None: there are none)."""
    return "\n".join(line.rstrip() for line in _lines(results, claim))


def _lines(results: Results, claim: Mapping[str, Any] | None) -> Iterator[str]:
    seeds, claimed = counted(results.seeds), f"claim of {counted(claim['seeds'])}" if claim else ""
    control = results.pairs[0][1] if results.pairs else results.arms[0]
    shown = [BASE, control, *(first for first, _ in results.pairs[:1])]
    yield f"After round {results.last}, {seeds}, held-out prompts. Change and claim: {control} - base"
    heads = "".join(f"{name[: width - 1]:>{width}}" for name, width in zip(shown, LEVELS, strict=False))
    yield f"{'':{NAME}}{heads}{'change':>{CHANGE}}  {claimed}"
    entries = claim["paired"].get(f"{control}-{BASE}", {}) if claim else {}
    for item in between(results, control, BASE, results.last)[:MOST]:
        levels = [item.metric.text(mean(results.by_seed(name, results.last, item.metric.key))) for name in shown]
        cells = "".join(f"{level:>{width}}" for level, width in zip(levels, LEVELS, strict=False))
        change = item.metric.text(item.mean, True)
        yield f"{_name(item.metric)}{cells}{change:>{CHANGE}}  {_interval(item.metric, entries)}"
    if not results.pairs:
        return
    treatment = results.pairs[0][0]
    arms = _some(between(results, treatment, control, results.last), OF_ARMS)
    yield from _wrapped(f"{treatment} - {control}", [_change(item) for item in arms])
    if claim:
        yield from _of_claim(f"  {claimed}", arms, claim["paired"].get(f"{treatment}-{control}", {}))
    gains, affine = (of_decoder(results, control, name) for name in (treatment, "affine"))
    trivial = {item.metric.key: item.metric.text(item.mean, True) for item in affine}
    entries = claim["paired"].get(f"{control}_tokens:{treatment}-original", {}) if claim else {}
    yield f"{control} tokens: {treatment} - original decoder (affine: the control to beat)"
    gains = _some(gains, OF_DECODER)
    for item in gains:
        beside = f"affine {trivial[item.metric.key]}" if item.metric.key in trivial else ""
        change = item.metric.text(item.mean, True)
        yield f"{_name(item.metric)}{beside:>{sum(LEVELS)}}{change:>{CHANGE}}  {_interval(item.metric, entries)}"
    if claim:
        clear = claim["paired"].get(f"{control}_tokens:{treatment}-affine", {})
        yield from _of_claim("clear of affine in the claim", gains, clear)


def _some(items: list[Difference], keys: Sequence[str]) -> list[Difference]:
    return [item for item in items if item.metric.key in keys] or items[:MOST]


def _change(item: Difference) -> str:
    return f"{item.metric.name} {item.metric.text(item.mean, True)}"


def _of_claim(title: str, items: list[Difference], entries: Mapping[str, Any]) -> Iterator[str]:
    """Which of these metrics the claim settles for the better, with its means, and which it does not."""
    known = [item.metric for item in items if entries.get(item.metric.key)]
    for_better = [m for m in known if settled(entries[m.key]) and m.improves(entries[m.key]["mean"])]
    words = [f"{metric.name} {metric.text(entries[metric.key]['mean'], True)}*" for metric in for_better]
    rest = [metric.name for metric in known if metric not in for_better and metric.better != "nearer"]
    yield from _wrapped(title, words + ([f"not {rest[0]}", *rest[1:]] if rest else []))


def _wrapped(title: str, words: list[str]) -> Iterator[str]:
    """`title: word, word`, on as many lines as it takes."""
    line = f"{title}:"
    for place, word in enumerate(words):
        added = f" {word}{',' if place + 1 < len(words) else ''}"
        if len(line) + len(added) > WIDTH:
            yield line
            line = "   "
        line += added
    if words:
        yield line


def _name(metric: Column) -> str:
    return f"{metric.name[: NAME - 2]} {metric.arrow}".ljust(NAME)


def _interval(metric: Column, entries: Mapping[str, Any]) -> str:
    """The claim's mean and interval, and a star where it leaves zero out."""
    entry = entries.get(metric.key)
    if entry is None or entry["low"] is None:
        return ""
    centre, low, high = (metric.text(entry[name], True).split()[0] for name in ("mean", "low", "high"))
    return f"{centre} ({low.removeprefix('+')}, {high.removeprefix('+')}){_mark(entries, metric)}"


def _mark(entries: Mapping[str, Any], metric: Column) -> str:
    return "*" if settled(entries.get(metric.key)) else ""


def closing(claim: Mapping[str, Any] | None) -> str:
    """What the star means, and what the claim's bar says; or that nothing is settled here."""
    if claim is None:
        return "What a seed or two show is not settled; `rank-e compare` has every seed."
    parts = [(f"({part})", answer) for part, answer in claim["bar"].items() if answer is not None]
    met, missed = ([part for part, answer in parts if answer is wanted] for wanted in (True, False))
    bar = [f"{', '.join(found)} {word}" for found, word in ((met, "met"), (missed, "not met")) if found]
    return (
        f"*: settled by {counted(claim['seeds'])} of {CLAIM}, not by this run.\n"
        f"Its bar (docs/claim.md): {'; '.join(bar) or 'nothing is known'}."
    )
