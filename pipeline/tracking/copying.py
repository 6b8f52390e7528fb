"""One artifact into one run of MLflow: its numbers, parameters, data and files."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow.entities import Metric, Run

from pipeline.tracking.lineage import CURVES, Lineage, Made
from pipeline.tracking.origin import usage_of
from pipeline.tracking.points import DETAILS, curve, evaluation_points, event_rows, log_rows, plain_params, round_points
from pipeline.tracking.store import SHA, Store
from stages.report.images import sheet
from stages.runtime.artifacts import Artifact, read_artifact

COSTS = ("seconds", "peak_rss_mb", "peak_gpu_mb")
LARGEST = 5_000_000
"""Bytes of the largest table that is kept with a run."""


def artifact_of(project: Path, made: Made) -> Artifact:
    """The artifact itself, whose files are verified when they are opened."""
    return read_artifact(project / made.path, made.manifest["kind"], lineage=False)


def params_of(lineage: Lineage, made: Made) -> dict[str, str]:
    """The parameters that an artifact was made with, and those of the prompts, rollouts and policy that it is of."""
    found: dict[str, str] = {}
    for name in ("prompts", "rollouts", "policy"):
        given = _input(lineage, made, name)
        found |= {} if given is None else plain_params(given.manifest["params"])
    own = dict(made.manifest["params"])
    if made.manifest["kind"] in ("evaluation", "factorial"):  # the rewards as metrics, not as this arm is trained by
        own.pop("ranking", None)
    return found | plain_params(own)


def points_of(project: Path, events: Mapping[str, Path], stage: str, made: Made, number: int) -> list[Metric]:
    """All points of a stage's artifact; a step's time is that of its event where that tells of the same step."""
    artifact, time = artifact_of(project, made), made.written
    if stage == "evaluation":
        return evaluation_points(artifact.json("metrics"), number, time)
    if stage == "factorial":
        return []
    found = round_points(stage, artifact.json("metrics"), number, time)
    if stage in CURVES:
        rows = log_rows(artifact.table("log"))
        logged, times = event_rows(events[stage]) if stage in events else ([], {})
        by_step = {row["step"]: row for row in rows}
        same = {row["step"]: times[row["step"]] for row in logged if by_step.get(row["step"]) == row}
        found += curve(stage, rows, same, time)
    return found


def copy_stage(
    store: Store, lineage: Lineage, runs: tuple[Run, Run], stage: str, made: Made, found: list[Metric]
) -> None:
    """A stage into its round and its arm (`runs`); the round's tag comes last, so a broken copy is done again."""
    child, parent = runs
    params = params_of(lineage, made)
    if stage == "ranking":
        log_data(store, lineage, child, made, "prompts", "training")
    if stage == "evaluation":
        log_data(store, lineage, child, made, "reference", "evaluation")
    log_files(store, lineage, child, stage, made)
    store.add(parent, found, params)
    store.add(child, found, params, {f"{SHA}{stage}": made.sha256})


def copy_costs(store: Store, lineage: Lineage, run: Run, stage: str, made: Made) -> None:
    """What a stage cost, and the revision of its code, into its round: written down a moment after the artifact."""
    if f"{DETAILS}/{stage} seconds" in run.data.metrics:
        return
    usage, number = usage_of(lineage.project, made), made.manifest["cell"]["round"]
    costs = {key: float(usage[key]) for key in COSTS if key in usage}
    spent = [Metric(f"{DETAILS}/{stage} {key}", cost, made.written, number) for key, cost in costs.items()]
    store.add(run, spent, tags={"mlflow.source.git.commit": usage["revision"]} if "revision" in usage else {})


def copy_alone(store: Store, lineage: Lineage, run: Run, made: Made, found: list[Metric]) -> None:
    """The evaluation of what comes before the rounds into a run of its own."""
    log_data(store, lineage, run, made, "reference", "evaluation")
    log_files(store, lineage, run, "evaluation", made)
    store.add(run, found, params_of(lineage, made), {f"{SHA}evaluation": made.sha256})


def log_data(store: Store, lineage: Lineage, run: Run, made: Made, name: str, context: str) -> None:
    """The prompts or real images that an artifact was made with, by the artifact that holds them."""
    entry = made.manifest["inputs"].get(name)
    if entry is not None:
        store.log_dataset(run, name, entry["sha256"][:32], entry["path"], context)


def log_files(store: Store, lineage: Lineage, run: Run, stage: str, made: Made) -> None:
    """Images and small tables."""
    with tempfile.TemporaryDirectory() as folder:
        for file in _files(Path(folder), lineage, stage, made):
            if file.stat().st_size <= LARGEST:
                store.log_file(run, file)


def _files(folder: Path, lineage: Lineage, stage: str, made: Made) -> Iterator[Path]:
    artifact = artifact_of(lineage.project, made)
    if stage == "evaluation":
        images = artifact.arrays("images")
        sheet([images["images"], images["original"]], 16).save(folder / "images.png")
        artifact.table("samples").to_csv(folder / "scores.csv", index=False)
        yield from (folder / "images.png", folder / "scores.csv")
    if stage == "ranking" and (prompts := _input(lineage, made, "prompts")):
        rewards = artifact.arrays("ranking")["rewards"]
        table = artifact_of(lineage.project, prompts).table("prompts")[["prompt"]]
        table = table.assign(mean=rewards.mean(1), best=rewards.max(1), worst=rewards.min(1))
        table.to_csv(folder / "rewards.csv", index=False)
        yield folder / "rewards.csv"
    if stage == "factorial":
        text = json.dumps(artifact.json("metrics"), indent=2, sort_keys=True)
        (folder / "factorial.json").write_text(text, encoding="utf-8")
        yield folder / "factorial.json"


def _input(lineage: Lineage, made: Made, name: str) -> Made | None:
    """An artifact that one was made from, where it lies there."""
    entry = made.manifest["inputs"].get(name)
    return None if entry is None else lineage.at(Path(entry["path"]))
