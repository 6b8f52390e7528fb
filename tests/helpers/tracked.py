"""What lies in the MLflow store of a project of fake artifacts, and edits of such a project."""

import json
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML

from pipeline.tracking.store import BY, CURRENT, EXPERIMENT, KEY, STATE, SUPERSEDED
from rank_e.config import Params, load
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import read_artifact


def every_run(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def runs(folder: Path) -> dict[str, Run]:
    """The current runs by their keys."""
    found = [run for run in every_run(folder) if run.data.tags[STATE] == CURRENT]
    keys = [run.data.tags[KEY] for run in found]
    assert len(keys) == len(set(keys)), "a run is there twice"
    return {run.data.tags[KEY]: run for run in found}


def superseded(folder: Path) -> list[Run]:
    found = [run for run in every_run(folder) if run.data.tags[STATE] == SUPERSEDED]
    assert all(run.info.status in ("FINISHED", "KILLED") and BY in run.data.tags for run in found)
    return found


def history(folder: Path, run: Run, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    points = client.get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def moments(folder: Path, run: Run, key: str) -> dict[int, int]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return {point.step: point.timestamp for point in client.get_metric_history(run.info.run_id, key)}


def write_events(folder: Path, stage: str, steps: range, value: Callable[[int], float], began: float = 1.0) -> None:
    path = folder / ".rank-e" / "events" / f"coevolved-s0-r2-{stage}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"step": step, "total": 8, "metrics": {"step": step, "loss": value(step)}, "time": began + step})
        for step in steps
    ]
    path.write_text("\n".join(lines) + "\n" + '{"step": 9, "to', encoding="utf-8")


def edit(folder: Path, section: str, **values: object) -> Params:
    yaml = YAML(typ="safe", pure=True)
    data = yaml.load((folder / "params.yaml").read_text())
    data[section] |= values
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(data, file)
    return load(folder / "params.yaml")


def rewrite(path: Path, inputs: dict[str, Path]) -> None:
    """An artifact again, with inputs."""
    old = read_artifact(path, path.name)
    manifest = old.manifest
    used = manifest["params"]
    with ArtifactWriter(path, path.name, seed=0, deterministic=True, inputs=inputs, params=used) as out:
        out.copy(old)
