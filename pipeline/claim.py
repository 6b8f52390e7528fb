"""`rank-e claim`: the finished run's numbers with what they were made by, and the figures drawn from them."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rank_e.config import Params
from rank_e.config.profiles import load_profile
from rank_e.errors import RankEError
from rank_e.io.files import replacing
from rank_e.io.json_text import parse_json
from stages.report.claim import counted, numbers, write_json
from stages.report.curves import by_round, pareto
from stages.report.data import Results, load_results
from stages.report.figures import Line, line_chart
from stages.report.images import makers_of, sheet
from stages.report.metrics import Column
from stages.runtime.stage import WORK
from stages.runtime.usage import read_usage

ABLATIONS = "claim-ablations-gpu"
"""The profile whose arms a claim names even where they were not run: null then, never guessed."""


def write_claim(params: Params, project: Path, folder: Path, name: str) -> str:
    """Write FOLDER/NAME.json and NAME-*.svg, NAME-images.png; returns a line that says so.

    ArtifactError where the run is not finished; RankEError for a name that is a path, or where the file that is there
    is of more seeds.
    """
    if not name or Path(name).name != name:
        raise RankEError(f"claim: --name {name!r} is no name of a file; give the folder by --to")
    results = load_results(params, project)
    _check_place(folder / f"{name}.json", results.seeds)
    found = {**made_by(params), **numbers(results), "seconds": seconds(results, project)}
    control = params.factorial.arms[0]
    for arm in load_profile(project / "profiles" / f"{ABLATIONS}.yaml").arms if name != "claim" else ():
        found["arms"].setdefault(arm, None)
        if arm != control:
            found["paired"].setdefault(f"{arm}-{control}", None)
    write_json(found, folder / f"{name}.json")
    for figure, drawing in figures(results, found).items():
        with replacing(folder / f"{name}-{figure}.svg") as file:
            file.write_text(drawing, encoding="utf-8")
    makers = makers_of(params, project, results.seeds[0])
    sheet([maker.images for maker in makers], 12).save(folder / f"{name}-images.png")
    return f"{folder / name}.json: {counted(results.seeds)}, bar {json.dumps(found['bar'])}"


def _check_place(path: Path, seeds: Sequence[int]) -> None:
    """A claim of more seeds is not replaced: the shipped one took hours, a demo takes minutes."""
    try:
        there = parse_json(path.read_text(encoding="utf-8"))["seeds"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or none that says so
        return
    if len(there) > len(seeds):
        raise RankEError(
            f"claim: {path} is of {counted(there)}, this run of {counted(seeds)}: give another folder by --to"
        )


def made_by(params: Params) -> dict[str, Any]:
    """Commit (with "+" where tracked files were changed since), date, machine, backbone and the resolved params."""
    commit = _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "device": params.runtime.device,
    }
    settings = params.model_dump(mode="json")
    return {
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "backbone": params.backbone.name,
        "images": params.evaluation.prompts * params.evaluation.samples_per_prompt,
        "settings": settings,
    }


def seconds(results: Results, project: Path) -> dict[str, float | None]:
    """Seconds that an arm's stages of all rounds take alone, the mean over seeds; None where a stage's was not kept."""
    found: dict[str, float | None] = {}
    for arm in results.arms:
        kinds = ("rollouts", "ranking", "policy", "decoder")
        cells = [f"{kind}-{arm}-s{s}-r{r}" for kind in kinds for s in results.seeds for r in results.rounds]
        files = [project / WORK / "usage" / f"{cell}.json" for cell in cells]
        usages = [usage for file in files if (usage := read_usage(file, "seconds")) is not None]
        total = sum(map(_alone, usages)) if len(usages) == len(files) else None
        found[arm] = None if total is None else round(total / len(results.seeds), 1)
    return found


def _alone(usage: Mapping[str, Any]) -> float:
    """What a stage costs where no other arm shares it."""
    seconds: float = usage.get("shared", usage)["seconds"]
    return seconds


def figures(results: Results, claim: Mapping[str, Any]) -> dict[str, str]:
    """SVG by name: the path through the rounds, the shift by round, and what each decoder does to the same tokens."""
    by_key = {metric.key: metric for metric in results.metrics}
    distance = results.first("distance")
    drawn = {}
    if distance is not None:
        drawn["pareto"] = pareto(results, distance)
        drawn["same-tokens"] = _gains(distance, claim["same_tokens_by_round"])
    shift = by_key["token_kl"]
    drawn["shift"] = line_chart(shift.name, shift.direction, by_round(results, shift))
    return drawn


def _gains(distance: Column, by_round: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The mean change of a distance by each decoder on the same tokens, a line for each."""
    lines = []
    for name, rounds in by_round.items():
        points = [(float(number), row[distance.key]) for number, row in rounds.items() if distance.key in row]
        policy, _, decoder = name.partition("_tokens:")
        lines.append(Line(decoder.removesuffix("-original"), points, True, f"{decoder} on {policy} tokens"))
    return line_chart(f"{distance.name} on the same tokens", f"change; {distance.direction}", lines)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise RankEError("a claim names its commit: run it in a clone made with git") from None
