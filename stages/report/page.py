"""The page: one HTML file that needs nothing else, neither a network nor a script.

It shows every seed whichever way it falls, says for each number which way is better, and calls a difference
better or worse only when its interval over the seeds of this run leaves zero out.
"""

from collections.abc import Sequence
from pathlib import Path

from rank_e.config import Params
from stages.report.data import (
    Difference,
    Results,
    against_start,
    between,
    drawn_by,
    factorial_rows,
    mean,
    of_decoder,
)
from stages.report.figures import Line, category_chart, difference_chart, line_chart, path_chart
from stages.report.images import grids
from stages.report.metrics import Column
from stages.report.style import STYLE
from stages.report.tables import differences_table, escape, factorial_table, levels_table, name_key


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


def by_round(results: Results, metric: Column) -> list[Line]:
    """Each seed's line and each arm's mean, from its start at round 0."""
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


def pareto(results: Results, distance: Column) -> str:
    """The first score that has a better way against a distance, round by round; the reward is the last of them."""
    score = next(metric for metric in results.metrics if metric.group == "score" and metric.better != "nearer")
    horizontal, vertical = by_round(results, score), by_round(results, distance)
    lines = [
        Line(a.name, [(dict(a.points)[x], y) for x, y in b.points if x in dict(a.points)], a.strong, a.label)
        for a, b in zip(horizontal, vertical, strict=True)
    ]
    title = f"{score.name} against {distance.name}"
    return path_chart(title, score.name, distance.name, lines, results.start, score.percent)


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
        "are a control: the original decoder's images with brightness and contrast matched to real ones. "
        "Mean over seeds, every seed below in the order of the seeds."
    )
    return section("What the decoder does to the same tokens", lead, factorial_table(results) + tables)


def headline(results: Results) -> str:
    """Each arm against the control, paired; nothing where there is one arm alone."""
    return "".join(compared(results, first, second) for first, second in results.pairs)


def compared(results: Results, first: str, second: str) -> str:
    """The paired comparison of two arms after the last round."""
    items = between(results, first, second, results.last)
    lead = (
        f"{name_key(first)} minus {name_key(second)} after round {results.last}, paired by seed (the two "
        "share prompts, sampling seeds and the base). Dots are seeds, the diamond is their mean, the bar its "
        "95 % t-interval over seeds. <b>“Open” means that the interval contains zero.</b> The metrics "
        "are read side by side: among so many, one that leaves zero out by luck alone is not rare."
    )
    if len(results.seeds) < 2:
        lead += " This run has one seed: it cannot tell the arms apart."
    return section(f"{first} against {second}", lead, difference_figures(items, first) + differences_table(items))


def against_base(results: Results) -> str:
    """What post-training did to the base, and to the supervised start where there is one, for each arm."""
    tables = "".join(
        f"<h3>{name_key(name)} − {escape(start)}</h3>" + differences_table(between(results, name, start, results.last))
        for name, start in against_start(results)
    )
    lead = "The price and the gain of post-training itself: every arm after its last round minus the base"
    if results.supervised:
        return section("Against the base and the supervised start", f"{lead}, and minus what it started from.", tables)
    return section("Against the base", f"{lead}.", tables)


def category_section(results: Results) -> str:
    """One metric by prompt category; nothing where the prompts have none."""
    if results.by_category is None:
        return ""
    metric, categories = results.by_category
    names, rows = [*results.before, *results.arms], []
    for category in categories:
        series = {name: list(results.by_seed(name, results.last, metric.key, category).values()) for name in names}
        series["base"] = series["base"][:1]  # the same for every seed
        rows.append((category.replace("_", " "), series))
    title = f"{metric.name} by category"
    lead = f"{escape(sentence(metric.meaning))}; {metric.direction}. Large dots are means, small ones the seeds."
    chart = f'<figure style="max-width:640px">{category_chart(title, rows, metric.text, metric.percent)}</figure>'
    return section(title, lead, legend(names) + chart)


def sentence(words: str) -> str:
    """The words with a capital letter."""
    return words[:1].upper() + words[1:]


def path_section(results: Results) -> str:
    """The first score against the first plain distance and, where there are several, the last; nothing without any."""
    # Not the matched ones: they leave out what is wrong, and the way through the rounds shows both.
    distances = [metric for metric in results.metrics if "real" in results.base.get(metric.key, {})]
    if not distances:
        return ""
    shown = [distances[0], *distances[1:][-1:]]
    paths = "".join(f"<figure>{pareto(results, metric)}</figure>" for metric in shown)
    return section(
        "The way through the rounds",
        f"Thin lines are seeds, thick ones means, from {name_key(results.start)} on. Down and right is better.",
        f'{legend([*results.before[-1:], *results.arms])}<div class="pair">{paths}</div>',
    )


def legend(names: Sequence[str]) -> str:
    """The colours of the series."""
    return f'<p class="legend">{"".join(name_key(name) for name in names)}</p>'


def image_section(params: Params, project: Path, results: Results) -> str:
    """The same prompts and sampling seeds, drawn by everyone; a block for each run seed."""
    blocks, marked = grids(params, project, results)
    lead = (
        f"The first held-out prompts, not chosen by eye. {'✓ and ✗ are the exact checker’s. ' if marked else ''}"
        "The column after a trained decoder shows the same tokens through the original one."
    )
    return section("Images", lead, blocks)


def render(params: Params, project: Path, results: Results) -> str:
    """The whole page as HTML text; the same artifacts give the same text."""
    charts = [
        line_chart(m.name, m.direction, by_round(results, m), percent=m.percent)
        for m in results.metrics
    ]  # fmt: skip
    charts.append(line_chart("Reward of the rollouts", "what each round trained on", training_lines(results)))
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    meanings = "".join(
        f"<dt>{escape(metric.name)} {metric.arrow}</dt><dd>{escape(metric.meaning)}; {metric.direction}</dd>"
        for metric in results.metrics
    )
    arms = ", ".join(results.arms)
    parts = [
        headline(results),
        section(
            "Where everyone stands",
            "Mean over seeds, each seed below in the order of the seeds.",
            levels_table(results),
        ),
        path_section(results),
        section(
            "Round by round",
            f"Round 0 is {name_key(results.start)}. Token KL and entropy show how far the tokens moved from those the "
            "decoder was trained on.",
            legend(results.arms) + f'<div class="charts">{figures}</div>',
        ),
        decoder_section(results),
        category_section(results),
        against_base(results),
        image_section(params, project, results),
        section(
            "How to read the numbers",
            "Evaluated on held-out prompts by networks that took no part in training.",
            f"<dl>{meanings}</dl>",
        ),
    ]
    facts = "".join(
        f"<li><b>{label}</b> {escape(str(value))}</li>"
        for label, value in (
            ("backbone", results.backbone), ("arms", arms), ("seeds", ", ".join(map(str, results.seeds))),
            ("rounds", len(results.rounds)), ("training prompts a round", params.prompts.per_round),
            ("held-out images", params.evaluation.prompts * params.evaluation.samples_per_prompt),
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
