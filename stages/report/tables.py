"""The page's tables: numbers with their direction, every seed, and a reading that the interval allows.

Each cell carries its column's name, which a narrow page shows in place of the head: there a row is a small block, so
that nothing lies outside the frame.
"""

import html
from collections.abc import Iterable, Sequence

from stages.report.comparisons import Comparison, agreeing, interval_text, p_text
from stages.report.data import (
    BASE,
    Difference,
    Results,
    drawn_by,
    factorial_metrics,
    factorial_rows,
    factorial_values,
    mean,
    value_of,
)
from stages.report.figures import DARK, colour
from stages.report.metrics import Column
from stages.report.sizes import size_note

Head = tuple[str, str]
"""A column's name as text, and as HTML."""


def escape(words: str) -> str:
    """Text as HTML."""
    return html.escape(words, quote=True)


def name_key(name: str) -> str:
    """A name behind a dot in its colour, on light and on dark ground."""
    light = colour(name)
    return f'<span><i class="key" style="--c:{light};--d:{DARK[light]}"></i>{escape(name)}</span>'


def legend(names: Sequence[str]) -> str:
    """The colours of the series."""
    return f'<p class="legend">{"".join(name_key(name) for name in names)}</p>'


def data_table(corner: str, heads: Sequence[Head], rows: Iterable[tuple[str, Sequence[str]]], kind: str = "") -> str:
    """A table of HTML cells, each row's head first; `corner`: what the heads are; `kind`: the table's class."""
    above = "".join(f'<th scope="col"><div>{shown}</div></th>' for _, shown in heads)
    body = []
    for head, cells in rows:
        labelled = zip(heads, cells, strict=True)
        found = "".join(f'<td data-label="{escape(label)}"><div>{cell}</div></td>' for (label, _), cell in labelled)
        body.append(f'<tr><th scope="row">{head}</th>{found}</tr>')
    return (
        f'<table class="data {kind}"><thead><tr><th scope="col"><div>{escape(corner)}</div></th>{above}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def plain(*names: str) -> list[Head]:
    """Heads that are their names."""
    return [(name, escape(name)) for name in names]


def keyed(*names: str) -> list[Head]:
    """Heads with the dots of their series."""
    return [(name, name_key(name)) for name in names]


def seeds_cell(item: Difference) -> str:
    """Every seed's difference, in the order of the seeds."""
    return "".join(f"<span>s{seed} {item.metric.text(value, True)}</span> " for seed, value in item.values.items())


def spread(metric: Column, values: dict[int, float]) -> str:
    """The mean, and below it every seed's value in the order of the seeds; for one seed its value alone."""
    each = " · ".join(metric.text(value).removesuffix(" %") for value in values.values())
    return metric.text(mean(values)) + (f"<small>{each}</small>" if len(values) > 1 else "")


def reading(item: Difference) -> str:
    """The reading, coloured only where the interval leaves zero out."""
    kind = item.verdict if item.verdict in ("better", "worse") else "open"
    return f'<b class="{kind}">{item.verdict}</b>'


def interval(item: Difference) -> str:
    """The 95 % interval with the number of seeds that it is of."""
    known = interval_text(item) if item.low is not None else "no interval"
    return f"{known} <small>n = {len(item.values)}</small>"


def metric_head(metric: Column) -> str:
    """A row's head: the metric's name and direction."""
    return f"{escape(metric.name)} {metric.arrow}<small>{metric.direction}</small>"


def differences_table(comparison: Comparison) -> str:
    """Mean, interval, p, reading and every seed of each metric's difference."""
    heads = plain("mean", "95 % interval", "p", "seeds better", "each seed", "reading")
    rows = [
        (
            metric_head(item.metric),
            [
                item.metric.text(item.mean, True),
                interval(item),
                p_text(item.p).replace("<", "&lt;"),
                agreeing(item),
                f'<div class="seeds">{seeds_cell(item)}</div>',
                reading(item),
            ],
        )
        for item in comparison.items
    ]
    return data_table("metric", heads, rows)


def levels_table(results: Results) -> str:
    """The values themselves: base, supervised start and each arm after the last round (mean; every seed below).

    Real images and reconstructions stand beside them; a note says where their distances are of another size.
    """
    trained, references = [*results.before[1:], *results.arms], ("real", "reconstruction")
    rows = []
    for metric in results.metrics:
        cells = [metric.text(value_of(results.base, metric.key))]
        cells += [spread(metric, results.by_seed(name, results.last, metric.key)) for name in trained]
        cells += [metric.text(value_of(results.reference.get(name, {}), metric.key)) for name in references]
        rows.append((metric_head(metric), cells))
    note = size_note(results.base, results.reference)
    table = data_table(f"after round {results.last}", keyed(BASE, *trained, *references), rows)
    return table + (f"<p><small>{escape(note)}</small></p>" if note else "")


def factorial_table(results: Results, policies: Sequence[str]) -> str:
    """{policy} x {decoder}: mean over seeds, every seed below. Real images, of another number, stand in their own."""
    metrics = factorial_metrics(results, policies)
    rows = [
        (
            f"{name_key(policy)} tokens<small>{escape(drawn_by(decoder))}</small>",
            [spread(metric, factorial_values(results, policy, decoder, metric.key)) for metric in metrics],
        )
        for policy, decoder in factorial_rows(results)
        if policy in policies
    ]
    return data_table("tokens / decoder", plain(*(f"{metric.name} {metric.arrow}" for metric in metrics)), rows)
