"""The page's tables: numbers with their direction, every seed, and a reading that the interval allows."""

import html
from collections.abc import Sequence

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
from stages.report.figures import colour
from stages.report.metrics import Column
from stages.report.sizes import size_note


def escape(words: str) -> str:
    """Text as HTML."""
    return html.escape(words, quote=True)


def seeds_text(item: Difference) -> str:
    """Every seed's difference, in the order of the seeds."""
    return "".join(f"<span>s{seed} {item.metric.text(value, True)}</span>" for seed, value in item.values.items())


def spread_text(metric: Column, values: dict[int, float]) -> str:
    """Every seed's value, in the order of the seeds; nothing for one seed, whose value is the mean."""
    return " · ".join(metric.text(value).removesuffix(" %") for value in values.values()) if len(values) > 1 else ""


def interval_text(item: Difference) -> str:
    """The 95 % interval as [low, high], or that one seed has none."""
    if item.low is None or item.high is None:
        return "n = 1: no interval"
    return f"[{item.metric.text(item.low, True)}, {item.metric.text(item.high, True)}]"


def verdict_cell(item: Difference) -> str:
    """The verdict, coloured only when the interval settles it, and how many seeds went the better way."""
    kind = item.verdict if item.verdict in ("better", "worse") else "open"
    count = "" if item.metric.better == "nearer" else f" <small>{item.better}/{len(item.values)} seeds better</small>"
    return f'<td class="{kind}">{item.verdict}{count}</td>'


def metric_head(metric: Column) -> str:
    """A row's head: the metric's name and direction."""
    return f'<th scope="row">{escape(metric.name)} {metric.arrow}<small>{metric.direction}</small></th>'


def name_key(name: str) -> str:
    """A name behind a dot in its colour."""
    return f'<span><i class="key" style="--c:{colour(name)}"></i>{escape(name)}</span>'


def differences_table(items: Sequence[Difference]) -> str:
    """Mean, interval, verdict and every seed of each metric's difference."""
    rows = "".join(
        f"<tr>{metric_head(item.metric)}<td>{item.metric.text(item.mean, True)}</td>"
        f"<td>{interval_text(item)}</td>"
        f'{verdict_cell(item)}<td class="seeds">{seeds_text(item)}</td></tr>'
        for item in items
    )
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">metric</th><th scope="col">mean</th>'
        '<th scope="col">95 % interval</th><th scope="col">reading</th><th scope="col">each seed</th></tr>'
        "</thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def levels_table(results: Results) -> str:
    """The values themselves: base, supervised start and each arm after the last round (mean; every seed below).

    Real images and reconstructions stand beside them; a note says where their distances are of another size.
    """
    trained = [*results.before[1:], *results.arms]
    heads = "".join(f'<th scope="col">{name_key(name)}</th>' for name in [BASE, *trained])
    rows = []
    for metric in results.metrics:
        cells = [f"<td>{metric.text(value_of(results.base, metric.key))}</td>"]
        for name in trained:
            values = results.by_seed(name, results.last, metric.key)
            spread = spread_text(metric, values)
            cells.append(f"<td>{metric.text(mean(values))}<br><small>{spread}</small></td>")
        for name in ("real", "reconstruction"):
            cells.append(f"<td>{metric.text(value_of(results.reference.get(name, {}), metric.key))}</td>")
        rows.append(f"<tr>{metric_head(metric)}{''.join(cells)}</tr>")
    note = size_note(results.base, results.reference)
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">after round {results.last}</th>{heads}'
        f'<th scope="col">{name_key("real")}</th><th scope="col">{name_key("reconstruction")}</th></tr>'
        "</thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>" + (f"<p><small>{escape(note)}</small></p>" if note else "")
    )


def factorial_table(results: Results) -> str:
    """{policy} x {decoder}: mean over seeds, every seed below."""
    metrics = factorial_metrics(results)
    heads = "".join(f'<th scope="col">{escape(m.name)} {m.arrow}</th>' for m in metrics)
    rows, previous = [], ""
    for policy, decoder in factorial_rows(results):
        cells = []
        for metric in metrics:
            values = factorial_values(results, policy, decoder, metric.key)
            spread = spread_text(metric, values)
            cells.append(f"<td>{metric.text(mean(values))}<br><small>{spread}</small></td>")
        start = ' class="from"' if policy != previous and previous else ""
        head = f'<th scope="row">{name_key(policy)} tokens<small>{escape(drawn_by(decoder))}</small></th>'
        rows.append(f"<tr{start}>{head}{''.join(cells)}</tr>")
        previous = policy
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">policy / decoder</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
