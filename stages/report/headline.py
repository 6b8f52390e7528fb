"""The run in a few numbers, as files that DVC shows: by `dvc metrics`, `dvc plots` and `dvc exp show`.

The whole of it stays in each evaluation's metrics.json.
"""

import csv
import json
from pathlib import Path

from rank_e.config import Params
from stages.report.data import BASE, SFT, Results, mean
from stages.report.metrics import Column


def headline(params: Params, results: Results) -> list[Column]:
    """The metrics that params.yaml names, the reward and the tokens' drift: nothing derived, no category."""
    named = {*params.evaluation.scores, *params.evaluation.distances, "reward", "token_kl"}
    return [metric for metric in results.metrics if metric.group == "benchmark" or metric.key in named]


def write_headline(params: Params, results: Results, folder: Path) -> None:
    """Write metrics/ROW.json, one number a metric after the last round, and plots/METRIC.csv: round, arm, value.

    Numbers are means over the seeds. Round 0 is what the arms began with.
    """
    metrics = headline(params, results)
    rows = [BASE, *([SFT] if results.supervised else []), *results.arms]
    for name in ("metrics", "plots"):
        (folder / name).mkdir()
    for row in rows:
        found = {metric.key: mean(results.by_seed(row, results.last, metric.key)) for metric in metrics}
        text = json.dumps({key: value for key, value in found.items() if value is not None}, indent=2)
        (folder / "metrics" / f"{row}.json").write_text(text + "\n", encoding="utf-8")
    for metric in metrics:
        with (folder / "plots" / f"{metric.key}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("round", "arm", "value"))
            for arm in results.arms:
                for number in (0, *params.evaluated):
                    value = mean(results.by_seed(arm, number, metric.key))
                    if value is not None:
                        writer.writerow((number, arm, value))
