"""The page's first screen: what the run says of the claim, in one figure, one table and one row of images."""

from pathlib import Path

from rank_e.config import Params
from stages.report.claim import BAR_WORDS, numbers
from stages.report.comparisons import ONE_SEED, Comparison, interval_text, seeds_text, verdict
from stages.report.curves import by_round, pareto
from stages.report.data import BASE, Difference, Results, between, mean, of_decoder
from stages.report.figures import line_chart
from stages.report.gallery import first_row
from stages.report.tables import Head, data_table, escape, keyed, legend, plain, reading

CLAIMED = (
    ' <a href="../docs/claim.md">docs/claim.md</a> has this world with several seeds: what they settle and what not; '
    "the table at the end of a run has their intervals beside these changes."
)


def opening(params: Params, project: Path, results: Results) -> str:
    """The first screen as HTML."""
    return (
        f'<section class="claim">{_words(params, results)}<div class="halves"><figure>{_figure(results)}'
        f"<figcaption>{legend([results.start, *results.arms])}</figcaption></figure>"
        f"<div>{claim_table(results)}</div></div>{first_row(params, project, results)}</section>"
    )


def _words(params: Params, results: Results) -> str:
    """What the intervals allow to be said, and which of the bars fixed beforehand they meet."""
    if len(results.seeds) < 2:
        shown = CLAIMED if params.backbone.name == "shapes" else ""
        return f"<p><b>{ONE_SEED[0].upper()}{ONE_SEED[1:]}.</b> What changed here may be the seed's doing.{shown}</p>"
    compared = [
        Comparison(first, second, between(results, first, second, results.last))
        for first, second in (*results.pairs[:1], (control_of(results), BASE))
    ]
    said = "".join(f"<p><b>{escape(item.title)}</b>: {escape(verdict(item.items))}</p>" for item in compared)
    bar = {letter: answer for letter, answer in numbers(results)["bar"].items() if answer is not None}
    bars = "".join(
        f'<li><b class="{"better" if answer else "open"}">{"met" if answer else "not met"}</b> ({letter}) '
        f"{escape(BAR_WORDS[letter])}</li>"
        for letter, answer in bar.items()
    )
    return said + (f'<ul class="facts">{bars}</ul>' if bars else "")


def control_of(results: Results) -> str:
    """The arm that the others are compared with; the first one where nothing is compared."""
    return results.pairs[0][1] if results.pairs else results.arms[0]


def _figure(results: Results) -> str:
    """The way of the arms through a score and a distance; without a distance the first metric by round."""
    if distance := results.first("distance"):
        return pareto(results, distance)
    metric = results.metrics[0]
    return line_chart(metric.name, metric.direction, by_round(results, metric), percent=metric.percent)


def claim_table(results: Results) -> str:
    """Levels of base, control and treatment, and the changes that the claim is about, a row for each metric."""
    control, last = control_of(results), results.last
    treatments = [first for first, _ in results.pairs[:1]]
    count = len(results.seeds)
    heads: list[Head] = [*keyed(BASE, control, *treatments), *plain(f"{control} − {BASE}{of(count)}")]
    changes = [between(results, control, BASE, last)]
    for name in treatments:
        heads += plain(f"{name} − {control}{of(count)}", f"{control} tokens: {name} − original decoder{of(count)}")
        changes += [between(results, name, control, last), of_decoder(results, control, name)]
    if affine := of_decoder(results, control, "affine"):
        heads += plain(f"{control} tokens: affine control − original decoder{of(count)}")
        changes.append(affine)
    by_key = [{item.metric.key: item for item in items} for items in changes]
    rows = []
    for metric in results.metrics:
        levels = [metric.text(mean(results.by_seed(name, last, metric.key))) for name in (BASE, control, *treatments)]
        cells = [_change(items.get(metric.key), count) for items in by_key]
        rows.append(
            (f'<span title="{escape(metric.meaning)}">{escape(metric.name)} {metric.arrow}</span>', [*levels, *cells])
        )
    return data_table(f"round {last}, {seeds_text(len(results.seeds))}", heads, rows)


def of(count: int) -> str:
    """What a column's head says of its intervals."""
    return f" (95\u00a0%, n\u00a0=\u00a0{count})" if count > 1 else ""


def _change(item: Difference | None, count: int) -> str:
    """A mean difference; with several seeds its reading and interval, and of how many it is where not of `count`."""
    if item is None:
        return "–"
    shown = item.metric.text(item.mean, True)
    if item.low is None:
        return shown
    fewer = f" n = {len(item.values)}" if len(item.values) < count else ""
    return f"{shown} {reading(item)}<small>{interval_text(item)}{fewer}</small>"
