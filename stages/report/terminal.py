"""`rank-e compare`: the same numbers as the report, as tables of at most 80 columns, the verdict last."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from stages.report.comparisons import (
    ONE_SEED,
    Comparison,
    agreeing,
    comparisons,
    interval_text,
    p_text,
    seeds_text,
    verdict,
)
from stages.report.data import BASE, REAL, Results, factorial_metrics, factorial_rows, factorial_values, mean, value_of
from stages.report.metrics import Column

WIDTH = 80
GAP = "  "
COLOURS = {"better": "green", "worse": "red"}
Row = tuple[str, Sequence[str]]
"""A row's name and its cells."""


def heading(metric: Column) -> str:
    """A metric with its direction, such as `FD ↓`."""
    return f"{metric.name} {metric.arrow}"


def table(heads: Sequence[str], rows: Sequence[Row], corner: str = "") -> Iterator[str]:
    """Names (below `corner`) at the left, cells at the right; columns that do not fit beside each other follow below.

    Where one column alone is too wide beside the names, each name stands on a line of its own.
    """
    columns = zip(heads, *(cells for _, cells in rows), strict=True)
    widths = [max(len(cell) for cell in column) for column in columns]
    names = max(len(corner), *(len(name) for name, _ in rows))
    apart = names + len(GAP) + max(widths) > WIDTH
    begin = 0
    while begin < len(heads):
        end, used = begin, 0 if apart else names
        while end < len(heads) and (end == begin or used + len(GAP) + widths[end] <= WIDTH):
            used += len(GAP) + widths[end]
            end += 1
        for name, cells in ((corner, heads), *rows):
            line = GAP.join(f"{cells[place]:>{widths[place]}}" for place in range(begin, end))
            if apart and name:
                yield name
            yield line.rstrip() if apart else f"{name:<{names}}{GAP}{line}".rstrip()
        begin = end


def levels(results: Results) -> Iterator[str]:
    """Base, supervised start and every arm after the last round: the mean, and each seed where there are several."""
    trained, last = [*results.before[1:], *results.arms], results.last
    rows = []
    for metric in results.metrics:
        means = [mean(results.by_seed(name, last, metric.key)) for name in trained]
        values = [value_of(results.base, metric.key), *means]
        rows.append((heading(metric), [metric.text(value) for value in values]))
    yield f"After round {last}, held-out prompts: means, {seeds_text(len(results.seeds))}"
    yield from table([BASE, *trained], rows)
    yield "↑ higher is better, ↓ lower is better, ≈ nearer to real images is better"
    for name in trained if len(results.seeds) > 1 else ():
        yield ""
        rows = [
            (heading(m), [m.text(results.value(name, seed, last, m.key)) for seed in results.seeds])
            for m in results.metrics
        ]  # fmt: skip
        yield from table([f"s{seed}" for seed in results.seeds], rows, name)


def factorial(results: Results, title: str, policies: Sequence[str]) -> Iterator[str]:
    """{policy} x {decoder}: means over the seeds. Real images, of another number, stand in a table of their own."""
    metrics = factorial_metrics(results, policies)
    rows = [
        (
            f"{policy} / {decoder}",
            [m.text(mean(factorial_values(results, policy, decoder, m.key))) for m in metrics],
        )
        for policy, decoder in factorial_rows(results)
        if policy in policies
    ]
    if rows:
        yield f"{title}; means, {seeds_text(len(results.seeds))}"
        yield from table([heading(metric) for metric in metrics], rows)
        yield ""


def differences(comparison: Comparison) -> Iterator[str]:
    """Each metric's mean difference, 95 % interval, p, seeds that are better and reading; below it each seed's."""
    heads = ("mean", "95 % interval", "p", "better/n", "reading")
    rows = [
        (
            heading(item.metric),
            (
                item.metric.text(item.mean, True),
                interval_text(item),
                p_text(item.p),
                agreeing(item),
                item.verdict,
            ),
        )
        for item in comparison.items
    ]
    yield comparison.title
    yield from table(heads, rows)
    several = [item for item in comparison.items if len(item.values) > 1]
    if several:
        seeds = list(dict.fromkeys(seed for item in several for seed in item.values))
        each = [(heading(i.metric), [i.metric.text(i.values.get(seed), True) for seed in seeds]) for i in several]
        yield from table([f"s{seed}" for seed in seeds], each)


def verdicts(results: Results) -> Iterator[str]:
    """What may be said of each comparison, in as few lines as it takes."""
    yield f"Verdict after round {results.last} ({seeds_text(len(results.seeds))})"
    if len(results.seeds) > 1:
        yield "better, worse: the 95 % t-interval over seeds leaves zero out; open: it does not"
    else:
        yield ONE_SEED
    for comparison in comparisons(results) if len(results.seeds) > 1 else ():
        words = f"{comparison.title}: {verdict(comparison.items)}"
        yield from textwrap.wrap(words, WIDTH, subsequent_indent=GAP, break_long_words=False, break_on_hyphens=False)


def lines(results: Results) -> Iterator[str]:
    """Everything that the artifacts allow, at most 80 columns wide, the verdict last; "" between two parts."""
    yield from levels(results)
    yield ""
    yield from factorial(results, "Tokens of / the same through the decoder of", results.arms)
    yield from factorial(results, "Real images / through the decoder of", [REAL])
    for comparison in comparisons(results):
        yield from differences(comparison)
        yield ""
    if results.missing:
        yield f"{len(results.missing)} artifacts are not written yet, first:"
        yield f"{GAP}{results.missing[0]}"
        yield ""
    yield from verdicts(results)


def print_results(results: Results, console: Console) -> None:
    """Print every table that the artifacts allow, what is not there yet, and the verdict."""
    if not results.cells:
        console.print("No arm has been evaluated yet: `rank-e run` computes what is missing.")
        return
    for line in lines(results):
        words = Text(line)
        for reading, colour in COLOURS.items():
            if line.endswith(f"  {reading}"):  # a column of its own
                words.stylize(colour, len(line) - len(reading))
        console.print(words, no_wrap=True, overflow="ignore", crop=False)
