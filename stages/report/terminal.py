"""`rank-e compare`: the same numbers as the report, as tables in the terminal."""

from rich.console import Console
from rich.table import Table

from stages.report.data import (
    BASE,
    Difference,
    Results,
    against_start,
    between,
    drawn_by,
    factorial_metrics,
    factorial_rows,
    factorial_values,
    mean,
    of_decoder,
    value_of,
)
from stages.report.metrics import Column

COLOURS = {"better": "green", "worse": "red"}


def heading(metric: Column) -> str:
    """A metric with its direction, such as `FD ↓`."""
    return f"{metric.name} {metric.arrow}"


def levels_table(results: Results) -> Table:
    """Base, supervised start, then every arm and seed after the last round; a row for each metric."""
    table = Table(title=f"After round {results.last} (seeds: {len(results.seeds)})", title_justify="left")
    table.add_column("metric", no_wrap=True)
    table.add_column(BASE, justify="right", style="bright_black")
    trained = [*results.before[1:], *results.arms]
    for arm in trained:
        for seed in results.seeds:
            table.add_column(f"{arm} s{seed}", justify="right")
        table.add_column(f"{arm} mean", justify="right", style="bold")
    for metric in results.metrics:
        cells = [metric.text(value_of(results.base, metric.key))]
        for arm in trained:
            cells += [metric.text(results.value(arm, seed, results.last, metric.key)) for seed in results.seeds]
            cells.append(metric.text(mean(results.by_seed(arm, results.last, metric.key))))
        table.add_row(heading(metric), *cells)
    return table


def differences_table(title: str, items: list[Difference]) -> Table:
    """Mean, 95 % t-interval, reading and every seed of each metric's paired difference."""
    table = Table(title=title, title_justify="left")
    for name in ("metric", "mean", "95 % interval", "reading", "better", "each seed"):
        table.add_column(name, justify="left" if name in ("metric", "reading", "each seed") else "right")
    for item in items:
        metric = item.metric
        known = item.low is not None and item.high is not None
        interval = f"{metric.text(item.low, True)} … {metric.text(item.high, True)}" if known else "–"
        colour = COLOURS.get(item.verdict)
        reading = f"[{colour}]{item.verdict}[/{colour}]" if colour else item.verdict
        count = "–" if metric.better == "nearer" else f"{item.better}/{len(item.values)}"
        seeds = "  ".join(f"s{seed} {metric.text(value, True)}" for seed, value in item.values.items())
        table.add_row(heading(metric), metric.text(item.mean, True), interval, reading, count, seeds)
    return table


def factorial_table(results: Results) -> Table:
    """{policy of each arm} x {decoder}: means over the seeds."""
    metrics = factorial_metrics(results)
    table = Table(title=f"Same tokens, other decoder (means, seeds: {len(results.seeds)})", title_justify="left")
    table.add_column("policy")
    table.add_column("decoder")
    for metric in metrics:
        table.add_column(heading(metric), justify="right")
    for policy, decoder in factorial_rows(results):
        cells = (m.text(mean(factorial_values(results, policy, decoder, m.key))) for m in metrics)
        table.add_row(policy, decoder, *cells)
    return table


def print_results(results: Results, console: Console) -> None:
    """Print every table that the artifacts allow, and say what is not there yet."""
    count = len(results.seeds)
    if not results.cells:
        console.print("No arm has been evaluated yet: `rank-e run` computes what is missing.")
        return
    console.print(levels_table(results))
    console.print("[bright_black]↑ higher is better, ↓ lower is better, ≈ nearer to real images is better[/]")
    for first, second in results.pairs:
        items = between(results, first, second, results.last)
        console.print(differences_table(f"{first} − {second}, paired by seed (seeds: {count})", items))
    for name, start in against_start(results):
        items = between(results, name, start, results.last)
        console.print(differences_table(f"{name} − {start} (seeds: {count})", items))
    if results.factorial:
        console.print(factorial_table(results))
        for policy, decoder in factorial_rows(results):
            if decoder != "original":
                items = of_decoder(results, policy, decoder)
                title = f"{drawn_by(decoder)} − original decoder, on {policy} tokens (seeds: {len(results.seeds)})"
                console.print(differences_table(title, items))
    console.print("[bright_black]“open”: the 95 % t-interval over the seeds of this run contains zero[/]")
    if results.missing:
        console.print(f"[yellow]{len(results.missing)} artifacts are not written yet, first: {results.missing[0]}[/]")
