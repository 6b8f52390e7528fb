"""What a run prints at its end: one table of what changed and what of it is settled, at most 30 lines of 80 columns."""

from collections.abc import Iterator, Mapping
from typing import Any

from stages.report.claim import CLAIM, settled
from stages.report.data import BASE, Difference, Results, between, mean, of_decoder
from stages.report.metrics import Column

WIDTH = 80
NAME, LEVELS, CHANGE = 15, (8, 9, 10), 9
MOST = 10  # metrics that the tables have room for


def ending(results: Results, claim: Mapping[str, Any] | None) -> str:
    """The text; `claim`: the shipped claim's numbers, whose intervals say what is settled (None: there are none)."""
    return "\n".join(line.rstrip() for line in _lines(results, claim))


def _lines(results: Results, claim: Mapping[str, Any] | None) -> Iterator[str]:
    seeds = f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}"
    claimed = f"claim of {len(claim['seeds'])} seeds" if claim else ""
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
    yield from _compared(f"{treatment} - {control}", between(results, treatment, control, results.last), claim)
    gains, affine = (of_decoder(results, control, name) for name in (treatment, "affine"))
    trivial = {item.metric.key: item.metric.text(item.mean, True) for item in affine}
    entries = claim["paired"].get(f"{control}_tokens:{treatment}-original", {}) if claim else {}
    yield f"{control} tokens: {treatment} - original decoder (affine: the control to beat)"
    yield f"{'':{NAME}}{'':{sum(LEVELS)}}{'change':>{CHANGE}}  {claimed}"
    for item in gains[:MOST]:
        beside = f"affine {trivial[item.metric.key]}" if item.metric.key in trivial else ""
        change = item.metric.text(item.mean, True)
        yield f"{_name(item.metric)}{beside:>{sum(LEVELS)}}{change:>{CHANGE}}  {_interval(item.metric, entries)}"


def _compared(title: str, items: list[Difference], claim: Mapping[str, Any] | None) -> Iterator[str]:
    """The two arms against each other, on one or two lines."""
    entries = claim["paired"].get(title.replace(" ", ""), {}) if claim else {}
    words = [f"{item.metric.name} {item.metric.text(item.mean, True)}{_mark(entries, item.metric)}" for item in items]
    line = f"{title}:"
    for place, word in enumerate(words):
        added = f" {word}{',' if place + 1 < len(words) else ''}"
        if len(line) + len(added) > WIDTH:
            yield line
            line = " "
        line += added
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
    """What the star means, or that nothing is settled here."""
    if claim is None:
        return "What a seed or two show is not settled; `rank-e compare` has every seed."
    seeds = f"{len(claim['seeds'])} seeds"
    return (
        f"*: settled, zero lies outside the interval of {seeds} ({CLAIM});\nfigures of one run move with the processor."
    )
