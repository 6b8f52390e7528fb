"""The report as files: a self-contained page, its figures and its numbers, written whole or not at all."""

import json
from dataclasses import asdict
from pathlib import Path

from rank_e.config import Params
from rank_e.io.files import replacing
from stages.report.data import (
    BASE,
    SFT,
    Difference,
    Results,
    against_start,
    between,
    factorial_rows,
    load_results,
    of_decoder,
)
from stages.report.images import makers_of, sheet
from stages.report.page import pareto, render
from stages.runtime.stage import artifact_path


def summary(results: Results) -> dict:
    """The paired differences and levels of the last round, for a program to read."""

    def plain(items: list[Difference]) -> dict:
        return {
            item.metric.key: {
                "better": item.metric.better,
                "seeds": {str(seed): value for seed, value in item.values.items()},
                "n": len(item.values),
                "mean": item.mean,
                "interval": None if item.low is None else [item.low, item.high],
                "reading": item.verdict,
            }
            for item in items
        }

    def by_seed(name: str) -> dict:
        return {key: {str(s): v for s, v in results.by_seed(name, results.last, key).items()} for key in keys}

    def against(start: str) -> dict:
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
        "paired": {f"{first} - {second}": plain(between(results, first, second, results.last)) for first, second in pairs},
        "against_base": against(BASE),
        "decoder_on_same_tokens": {
            f"{policy}/{decoder}": plain(of_decoder(results, policy, decoder)) for policy, decoder in decoders
        },
        **supervised,
    }


def write_report(params: Params, project: Path) -> Path:
    """Write report/ whole or not at all: index.html, results.json, images.png; with any distance, pareto.svg."""
    target = project / artifact_path("report")
    results = load_results(params, project)
    with replacing(target) as folder:
        folder.mkdir()
        (folder / "index.html").write_text(render(params, project, results), encoding="utf-8")
        text = json.dumps(summary(results), indent=2, sort_keys=True, allow_nan=False)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        if distance := results.first("distance"):
            (folder / "pareto.svg").write_text(pareto(results, distance), encoding="utf-8")
        makers = makers_of(params, project, results.seeds[0])
        sheet([maker.images for maker in makers], 12).save(folder / "images.png")
    return target / "index.html"
