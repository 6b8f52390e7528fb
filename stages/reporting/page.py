"""The page: one HTML file that needs nothing else, neither a network nor a script.

It shows every seed whichever way it falls, says for each number which way is better, and calls a difference
settled only when its interval leaves zero out.
"""

from collections.abc import Sequence
from pathlib import Path

from rank_e.config import Params
from stages.reporting.data import (
    METRIC,
    METRICS,
    Difference,
    Metric,
    Results,
    between_arms,
    drawn_by,
    factorial_rows,
    mean,
    of_decoder,
)
from stages.reporting.figures import Line, category_chart, difference_chart, line_chart, path_chart
from stages.reporting.pictures import columns, grid
from stages.reporting.style import STYLE
from stages.reporting.tables import differences_table, escape, factorial_table, levels, name_key


def section(title: str, lead: str, body: str) -> str:
    """A titled part of the page; `lead` is HTML."""
    return f"<section><h2>{escape(title)}</h2><p>{lead}</p>{body}</section>"


def difference_figures(items: Sequence[Difference], name: str) -> str:
    """Small drawings of the differences, one for each metric."""
    drawings = []
    for item in items:
        metric = item.metric
        interval = None if item.low is None or item.high is None else (item.low, item.high)
        right = None if metric.better == "nearer" else metric.better == "higher"
        drawings.append(
            difference_chart(
                metric.name, metric.direction, item.values, item.mean, interval, right, name, metric.percent
            )
        )
    return f'<div class="charts">{"".join(f"<figure>{drawing}</figure>" for drawing in drawings)}</div>'


def by_round(results: Results, metric: Metric) -> list[Line]:
    """Each seed's line and each arm's mean, from the base at round 0."""
    lines = []
    rounds = [0, *results.rounds]
    for arm in results.arms:
        for seed in results.seeds:
            values = [(item, results.value(arm, seed, item, metric.key)) for item in rounds]
            points = [(float(item), value) for item, value in values if value is not None]
            lines.append(Line(arm, points, False, f"{arm} s{seed}"))
        means = [(item, mean(results.by_seed(arm, item, metric.key))) for item in rounds]
        lines.append(Line(arm, [(float(item), v) for item, v in means if v is not None], True, f"{arm}, mean"))
    return lines


def training_lines(results: Results) -> list[Line]:
    """The mean reward of the rollouts that each round trained on."""
    lines = []
    for arm in results.arms:
        found = {
            seed: [
                (float(item), results.training[arm, seed, item]["reward_mean"])
                for item in results.rounds
                if (arm, seed, item) in results.training
            ]
            for seed in results.seeds
        }
        lines += [Line(arm, points, False, f"{arm} s{seed}") for seed, points in found.items()]
        rounds = sorted({x for points in found.values() for x, _ in points})
        centre = [(x, mean([dict(points)[x] for points in found.values() if x in dict(points)])) for x in rounds]
        lines.append(Line(arm, [(x, value) for x, value in centre if value is not None], True, f"{arm}, mean"))
    return lines


def pareto(results: Results, key: str) -> str:
    """CLIP score against a Frechet distance, round by round."""
    horizontal, vertical = by_round(results, METRIC["clip"]), by_round(results, METRIC[key])
    lines = [
        Line(a.name, [(dict(a.points)[x], y) for x, y in b.points if x in dict(a.points)], a.strong, a.label)
        for a, b in zip(horizontal, vertical, strict=True)
    ]
    name = METRIC[key].name
    return path_chart(f"CLIP score against {name}", "CLIP score", name, lines)


def decoder_section(results: Results) -> str:
    """The factorial, and each trained decoder's paired effect on each arm's tokens."""
    tables = "".join(
        f"<h3>{name_key(decoder)}{drawn_by(decoder).removeprefix(decoder)} − original decoder, on "
        f"{escape(policy)} tokens</h3>" + differences_table(items)
        for policy, decoder in factorial_rows(results)
        if decoder != "original" and (items := of_decoder(results, policy, decoder))
    )
    lead = (
        "Rows of one policy share their tokens: whatever differs between them is the decoder's doing. The affine rows "
        "are a control: the original decoder's pictures with brightness and contrast matched to real ones. "
        "Mean over seeds, every seed below in the order of the seeds."
    )
    return section("What the decoder does to the same tokens", lead, factorial_table(results) + tables)


def headline(results: Results) -> str:
    """The paired comparison of the two arms that the run is about, or the sentence that there is none."""
    if results.pair is None:
        return ""
    first, second = results.pair
    items = between_arms(results, first, second, results.last)
    lead = (
        f"{name_key(first)} minus {name_key(second)} after round {results.last}, paired by seed (the two "
        "share prompts, sampling seeds and the base). Dots are seeds, the diamond is their mean, the bar its "
        "95 % t-interval over seeds. <b>“Not settled” means that the interval contains zero.</b> The metrics "
        "are read side by side: among so many, one that settles by luck alone is not rare."
    )
    if len(results.seeds) < 2:
        lead += " This run has one seed: it cannot tell the arms apart."
    return section(f"{first} against {second}", lead, difference_figures(items, first) + differences_table(items))


def against_base(results: Results) -> str:
    """What post-training did to the base, for each arm."""
    tables = "".join(
        f"<h3>{name_key(arm)} − base</h3>" + differences_table(between_arms(results, arm, "base", results.last))
        for arm in results.arms
    )
    lead = "The price and the gain of post-training itself: every arm after its last round minus the base."
    return section("Against the base", lead, tables)


def category_section(results: Results) -> str:
    """Accuracy by prompt category."""
    rows = []
    for category in results.categories():
        key = f"accuracy_{category}"
        series = {"base": [results.base[key]]} | {
            arm: list(results.by_seed(arm, results.last, key).values()) for arm in results.arms
        }
        rows.append((category.replace("_", " "), series))
    lead = "Share of pictures that the exact checker accepts; large dots are means, small ones the seeds."
    chart = f'<figure style="max-width:640px">{category_chart(rows)}</figure>'
    return section("Accuracy by category", lead, legend(["base", *results.arms]) + chart)


def legend(names: Sequence[str]) -> str:
    """The colours of the series."""
    return f'<p class="legend">{"".join(name_key(name) for name in names)}</p>'


def picture_section(params: Params, project: Path, results: Results) -> str:
    """The same prompts and sampling seeds, drawn by everyone; a block for each run seed."""
    blocks = []
    for index, seed in enumerate(results.seeds):
        table = grid(*columns(params, project, seed))
        blocks.append(f"<details{' open' if index == 0 else ''}><summary>seed {seed}</summary>{table}</details>")
    lead = (
        "The first held-out prompts, not chosen by eye. ✓ and ✗ are the exact checker's. The column after a "
        "trained decoder shows the same tokens through the original one."
    )
    return section("Pictures", lead, "".join(blocks))


def render(params: Params, project: Path, results: Results) -> str:
    """The whole page as HTML text; the same artifacts give the same text."""
    charts = [
        line_chart(m.name, m.direction, by_round(results, m), percent=m.percent)
        for m in METRICS
    ]  # fmt: skip
    charts.append(line_chart("Reward of the rollouts", "what each round trained on", training_lines(results)))
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    paths = "".join(f"<figure>{pareto(results, key)}</figure>" for key in ("fd", "fd_patch"))
    meanings = "".join(
        f"<dt>{metric.name} {metric.arrow}</dt><dd>{escape(metric.meaning)}; {metric.direction}</dd>"
        for metric in METRICS
    )
    arms = ", ".join(results.arms)
    parts = [
        headline(results),
        section(
            "Where everyone stands",
            "Mean over seeds, each seed below in the order of the seeds.",
            levels(results),
        ),
        section(
            "The way through the rounds",
            "Thin lines are seeds, thick ones means; the grey dot is the base. Down and right is better.",
            f'{legend(["base", *results.arms])}<div class="pair">{paths}</div>',
        ),
        section(
            "Round by round",
            "Token KL and entropy show how far the tokens moved from those the decoder was trained on.",
            legend(results.arms) + f'<div class="charts">{figures}</div>',
        ),
        decoder_section(results),
        category_section(results),
        against_base(results),
        picture_section(params, project, results),
        section(
            "How to read the numbers",
            "Judged on held-out prompts by a network that took no part in training.",
            f"<dl>{meanings}</dl>",
        ),
    ]
    facts = "".join(
        f"<li><b>{label}</b> {escape(str(value))}</li>"
        for label, value in (
            ("backbone", results.backbone), ("arms", arms), ("seeds", ", ".join(map(str, results.seeds))),
            ("rounds", len(results.rounds)), ("training prompts a round", params.prompts.per_round),
            ("held-out pictures", params.evaluation.prompts * params.evaluation.samples_per_prompt),
        )
    )  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><title>RankE report</title>'
        f"<style>{STYLE}</style></head><body><main><header><h1>RankE report</h1>"
        "<p>A discrete text-to-image model is post-trained with a ranked reward. One arm moves only its "
        "policy, another its policy and its decoder in turn. Both see the same prompts and seeds.</p>"
        f'<ul class="facts">{facts}</ul></header>{"".join(parts)}'
        "<footer>Written by the stage <code>report</code>; the same artifacts give this same page.</footer>"
        "</main></body></html>\n"
    )
