"""The page: one HTML file that needs nothing else, neither a network nor another file.

Its first screen shows what the run says of the claim; the rest is folded. It shows every seed whichever way it falls,
says for each number which way is better, and calls a difference better or worse only when its interval over the seeds
of this run leaves zero out.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rank_e.config import Params
from stages.report.arms import arms_table
from stages.report.comparisons import Comparison, comparisons, seeds_text
from stages.report.costs import costs, costs_table
from stages.report.curves import by_round, pareto, training_lines, update_logs
from stages.report.data import REAL, Results, factorial_rows
from stages.report.figures import line_chart
from stages.report.gallery import checker_of, galleries, stops
from stages.report.opening import opening
from stages.report.script import POLICY, SCRIPT
from stages.report.spreads import category_chart, difference_chart
from stages.report.style import SHOW_ALL, STYLE
from stages.report.tables import differences_table, escape, factorial_table, legend, levels_table, name_key


def folded(title: str, hint: str, lead: str, body: str) -> str:
    """A part of the page that opens when it is wanted; `lead` is HTML."""
    said = f"<p>{lead}</p>" if lead else ""
    return f"<details><summary><h2>{escape(title)}</h2><small>{escape(hint)}</small></summary>{said}{body}</details>"


def chooser(name: str, label: str, panels: Sequence[tuple[str, str]]) -> str:
    """One of several panels (title, HTML), the first to begin with; a single one has nothing to choose."""
    if len(panels) == 1:
        return panels[0][1]
    options = "".join(f"<option>{escape(title)}</option>" for title, _ in panels)
    shown = "".join(
        f'<div class="panel"{" hidden" if place else ""}><h3>{escape(title)}</h3>{body}</div>'
        for place, (title, body) in enumerate(panels)
    )
    select = f'<label class="chooser">{label} <select data-for="{name}">{options}</select></label>'
    return f'{select}<div id="{name}">{shown}</div>'


def charts(drawings: Iterable[str]) -> str:
    """Small drawings beside each other."""
    return f'<div class="charts">{"".join(f"<figure>{drawing}</figure>" for drawing in drawings)}</div>'


def difference_figures(comparison: Comparison) -> str:
    """Small drawings of the differences, one for each metric."""
    drawings = []
    for item in comparison.items:
        metric = item.metric
        interval = None if item.low is None or item.high is None else (item.low, item.high)
        right = None if metric.better == "nearer" else metric.better == "higher"
        about = (metric.name, metric.direction, item.values, item.mean, interval, right)
        drawings.append(difference_chart(*about, comparison.first, metric.percent))
    return charts(drawings)


def differences_section(results: Results) -> str:
    """Every comparison of the run behind one chooser; arms against each other are drawn as well."""
    found = comparisons(results)
    panels = []
    for comparison in found:
        drawn = difference_figures(comparison) if (comparison.first, comparison.second) in results.pairs else ""
        panels.append((comparison.title, differences_table(comparison) + drawn))
    count = len(results.seeds)
    lead = (
        f"After round {results.last}, paired by seed: both sides share prompts, sampling seeds and the base. "
        "Intervals are Student's t, 95 %, over the n seeds, p its two-sided value for “no change”; in the drawings "
        "dots are seeds, the diamond is their mean, the bar the interval. <b>“Open” means that the interval contains "
        "zero.</b> Among so many metrics one that leaves zero out by luck alone is not rare: read them side by side."
    )
    if count < 2:
        lead += " This run has one seed: it cannot tell the arms apart."
    if results.factorial:
        lead += (
            " On the same tokens whatever differs is the decoder's doing; the affine control is the original "
            "decoder's images with brightness and contrast matched to real ones."
        )
    return folded(
        "Every difference",
        f"{len(found)} comparisons, {seeds_text(count)}",
        lead,
        chooser("differences", "compare", panels),
    )


def levels_section(results: Results) -> str:
    """What everyone stands at, and the factorial where there is one."""
    body = levels_table(results)
    if results.factorial:
        body += f"<h3>The same tokens through other decoders</h3>{factorial_table(results, results.arms)}"
        if any(policy == REAL for policy, _ in factorial_rows(results)):
            body += f"<h3>Real images through the decoders</h3>{factorial_table(results, [REAL])}"
    lead = "Mean over seeds, each seed below in the order of the seeds."
    return folded("Where everyone stands", "values after the last round", lead, body)


def image_section(params: Params, project: Path, results: Results) -> str:
    """The same prompts and sampling seeds, drawn by everyone, by round; a block for each run seed."""
    ids = [0, *stops(params)]
    marked = checker_of(results) is not None
    lead = (
        f"The first held-out prompts, not chosen by eye. {'✓ and ✗ are the exact checker’s. ' if marked else ''}"
        "“Its tokens, original decoder” are the tokens of the arm before it. A click enlarges an image. "
        f"Round 0 is {name_key(results.start)}, other rounds are those that are evaluated."
    )
    slider = (
        f'<label class="chooser">round <input type="range" min="0" max="{len(ids) - 1}" value="{len(ids) - 1}" '
        f'data-for="images" data-rounds="{" ".join(map(str, ids))}"><output>{ids[-1]}</output></label>'
    )
    blocks = chooser("seeds", "images of", galleries(params, project, results))
    hint = f"rounds {', '.join(map(str, ids))}; {seeds_text(len(results.seeds))}"
    return folded("Images by round", hint, lead, f'{slider}<div id="images">{blocks}</div>')


def rounds_section(results: Results) -> str:
    """Every metric by round, and the way through the first score and the first and last plain distance."""
    drawings = [line_chart(m.name, m.direction, by_round(results, m), percent=m.percent) for m in results.metrics]
    drawings.append(line_chart("Reward of the rollouts", "what each round trained on", training_lines(results)))
    lead = (
        f"Round 0 is {name_key(results.start)}; thin lines are seeds, thick ones means. Token KL and entropy show how "
        "far the tokens moved from those the decoder was trained on."
    )
    body = legend(results.arms) + charts(drawings) + path_section(results)
    return folded("Round by round", f"{len(results.metrics)} metrics", lead, body)


def path_section(results: Results) -> str:
    """The first score against the first plain distance and, where there are several, the last; nothing without any."""
    # Not the matched ones: they leave out what is wrong, and the way through the rounds shows both.
    distances = [metric for metric in results.metrics if "real" in results.base.get(metric.key, {})]
    if not distances:
        return ""
    shown = [distances[0], *distances[1:][-1:]]
    return f"<h3>The way through the rounds: down and right is better</h3>{charts(pareto(results, m) for m in shown)}"


def training_section(params: Params, project: Path) -> str:
    """What each update logged, step by step; nothing where nothing did."""
    logs, absent = update_logs(params, project)
    if not logs:
        return ""
    drawings = [
        line_chart(column.replace("_", " "), f"{stage} update", lines, "step", marked=False)
        for (stage, column), lines in logs.items()
    ]
    lead = "What the updates logged; long logs as the means of equal parts."
    if absent:
        lead += f" {len(absent)} of the rounds' artifacts are not here any more, first: {escape(absent[0])}."
    hint = f"{len(drawings)} curves of the policy and the decoder updates"
    return folded("Training", hint, lead, legend(list(params.arms)) + charts(drawings))


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
    chart = f'<figure class="narrow">{category_chart(title, rows, metric.text, metric.percent)}</figure>'
    return folded(title, f"{len(categories)} categories", lead, legend(names) + chart)


def sentence(words: str) -> str:
    """The words with a capital letter."""
    return words[:1].upper() + words[1:]


def costs_section(params: Params, project: Path) -> str:
    """Seconds of each stage; nothing where none was written down."""
    found, count = costs(params, project)
    if not found:
        return ""
    hours = sum(cost.seconds for cost in found) / 3600
    lead = (
        f"Of {len(found)} of {count} stages, as this machine last ran them; a stage that came from a cache or from "
        "another machine has no record here, and stages that ran side by side share its cores."
    )
    return folded("Costs", f"{hours:.2f} hours of stages", lead, costs_table(found, params))


def meanings_section(results: Results) -> str:
    """What each metric says."""
    meanings = "".join(
        f"<dt>{escape(metric.name)} {metric.arrow}</dt><dd>{escape(metric.meaning)}; {metric.direction}</dd>"
        for metric in results.metrics
    )
    lead = "Evaluated on held-out prompts by networks that took no part in training."
    return folded("How to read the numbers", "what each metric measures", lead, f"<dl>{meanings}</dl>")


def missing_words(results: Results) -> str:
    """What the page lacks, and what it is of instead; nothing where the run is whole."""
    if not results.missing:
        return ""
    shown = [", ".join(results.arms), ", ".join(f"s{seed}" for seed in results.seeds), f"rounds 1 to {results.last}"]
    return (
        f"<p><b>A part of the run:</b> {escape('; '.join(shown))}. Of the whole, {len(results.missing)} artifacts are "
        f"not here or not up to date, first: <code>{escape(results.missing[0])}</code>.</p>"
    )


def render(params: Params, project: Path, results: Results) -> str:
    """The whole page as HTML text; the same artifacts and records of time give the same text."""
    parts = [
        opening(params, project, results),
        differences_section(results),
        image_section(params, project, results),
        levels_section(results),
        rounds_section(results),
        training_section(params, project),
        category_section(results),
        folded(
            "What the arms differ in",
            ", ".join(params.arms),
            "The params that are not the same for all.",
            arms_table(params),
        ),
        costs_section(params, project),
        meanings_section(results),
    ]
    facts = "".join(
        f"<li>{label} <b>{escape(str(value))}</b></li>"
        for label, value in (
            ("backbone", results.backbone),
            ("arms", ", ".join(results.arms)),
            ("seeds", ", ".join(map(str, results.seeds))),
            ("rounds", len(results.rounds)),
            ("training prompts a round", params.prompts.per_round),
            ("held-out images", params.evaluation.prompts * params.evaluation.samples_per_prompt),
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>RankE report</title><style>{STYLE}</style><noscript><style>{SHOW_ALL}</style></noscript></head>"
        f'<body><main><header><h1>RankE report</h1><ul class="facts">{facts}</ul>{missing_words(results)}</header>'
        f"{''.join(parts)}"
        "<footer>Written by the stage <code>report</code>; the same artifacts and records of time give this same page."
        '</footer></main><dialog aria-label="image"><img alt="" src="data:,"><p></p></dialog>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )
