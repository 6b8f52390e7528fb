"""A run's levels and paired differences for a program to read: as one value for JSON, and as rows for CSV."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rank_e.evaluation.student import mean_interval
from stages.report.comparisons import comparisons
from stages.report.data import BASE, SFT, Difference, Results, against_start, between, factorial_rows, of_decoder
from stages.report.metrics import Column

FIELDS = ("what", "metric", "better", "unit", "n", "mean", "low", "high", "p", "reading")
"""Columns of the CSV before a column for each seed; `what` is an arm, or a comparison's title."""


def summary(results: Results) -> dict[str, Any]:
    """The paired differences and levels of the last round, and what is missing."""

    def plain(items: list[Difference]) -> dict[str, Any]:
        return {
            item.metric.key: {
                "better": item.metric.better,
                "seeds": {str(seed): value for seed, value in item.values.items()},
                "n": len(item.values),
                "mean": item.mean,
                "interval": None if item.low is None else [item.low, item.high],
                "p": item.p,
                "reading": item.verdict,
            }
            for item in items
        }

    def by_seed(name: str) -> dict[str, Any]:
        return {key: {str(s): v for s, v in results.by_seed(name, results.last, key).items()} for key in keys}

    def against(start: str) -> dict[str, Any]:
        pairs = [pair for pair in against_start(results) if pair[1] == start]
        return {name: plain(between(results, name, start, results.last)) for name, _ in pairs}

    pairs = results.pairs
    keys = [metric.key for metric in results.metrics]
    supervised = {"sft": by_seed(SFT), "against_sft": against(SFT)} if results.supervised else {}
    decoders = [pair for pair in factorial_rows(results) if pair[1] != "original"]
    return {
        "round": results.last,
        "seeds": results.seeds,
        "metrics": {metric.key: asdict(metric) for metric in results.metrics},
        "base": {key: results.base[key]["value"] for key in keys if key in results.base},
        "arms": {arm: by_seed(arm) for arm in results.arms},
        "paired": {
            f"{first} - {second}": plain(between(results, first, second, results.last)) for first, second in pairs
        },
        "against_base": against(BASE),
        "decoder_on_same_tokens": {
            f"{policy}/{decoder}": plain(of_decoder(results, policy, decoder)) for policy, decoder in decoders
        },
        "missing": results.missing,
        **supervised,
    }


def json_text(results: Results) -> str:
    """The summary as JSON."""
    return json.dumps(summary(results), indent=2, sort_keys=True, allow_nan=False) + "\n"


def csv_text(results: Results) -> str:
    """A row for each level and each difference, the numbers as the evaluations have them."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*FIELDS, *(f"s{seed}" for seed in results.seeds)])
    writer.writerows([*_levels(results), *_differences(results)])
    return file.getvalue()


def unit(metric: Column) -> str:
    """A metric's unit; a share is in [0, 1] here."""
    return "share" if metric.percent else metric.unit


def _levels(results: Results) -> Iterator[list[Any]]:
    for name in [*results.before, *results.arms]:
        for metric in results.metrics:
            values = results.by_seed(name, results.last, metric.key)
            if values:
                # The base is one evaluation, which all seeds share.
                numbers, each = ([*values.values()][:1], {}) if name == BASE else (values.values(), values)
                about = [name, metric.key, metric.better, unit(metric), len(numbers), *mean_interval(numbers)]
                yield [*about, None, None, *(each.get(seed) for seed in results.seeds)]


def _differences(results: Results) -> Iterator[list[Any]]:
    for comparison in comparisons(results):
        for item in comparison.items:
            about = [comparison.title, item.metric.key, item.metric.better, unit(item.metric), len(item.values)]
            found = [item.mean, item.low, item.high, item.p, item.verdict]
            yield [*about, *found, *(item.values.get(seed) for seed in results.seeds)]
