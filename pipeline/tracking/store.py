"""The few things that tracking asks of MLflow, in batches, with bounded patience and one-line errors."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read when MLflow is imported: a dead server must cost seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from rank_e.errors import RankEError

EXPERIMENT = "rank-e"
KEY, KIND, SHA, LIVE = "rank_e.round_key", "rank_e.kind", "rank_e.sha256.", "rank_e.live."
PARENT, NAME = "mlflow.parentRunId", "mlflow.runName"
BATCH = 1000
"""Points that MLflow takes in one call."""


class TrackingError(RankEError):
    """MLflow cannot be reached or refused; training goes on without it."""


def default_uri(project: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the project's own sqlite store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(project / 'mlflow.db').resolve()}"


@contextmanager
def refusals(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line that says where."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrackingError(f"MLflow at {uri}: {first}; start it, or set MLFLOW_TRACKING_URI") from error


def hashes(run: Run) -> dict[str, str]:
    """What has been copied into a run: the sha256 of a manifest by stage."""
    return {name.removeprefix(SHA): v for name, v in run.data.tags.items() if name.startswith(SHA)}


class Store:
    """One experiment of one MLflow store."""

    def __init__(self, uri: str, project: Path) -> None:
        """Open or create the experiment; MlflowException if the store cannot be opened."""
        self.client = MlflowClient(uri)
        found = self.client.get_experiment_by_name(EXPERIMENT)
        # A local store keeps images beside the project; a server knows better.
        local = None if uri.startswith("http") else (project / "mlruns").resolve().as_uri()
        self.experiment = (
            found.experiment_id if found else self.client.create_experiment(EXPERIMENT, artifact_location=local)
        )

    def create(self, key: str, name: str, parent: str | None, params: dict[str, Any]) -> Run:
        """A running run with its key, name, parent and parameters."""
        tags = {KEY: key, NAME: name, KIND: "round" if parent else "arm"}
        run = self.client.create_run(self.experiment, tags=tags | ({PARENT: parent} if parent else {}))
        given = [Param(name, str(value)) for name, value in params.items()]
        self.client.log_batch(run.info.run_id, params=given)
        return self.client.get_run(run.info.run_id)

    def find(self, key: str) -> Run | None:
        """The run with this key, if there is one."""
        found = self._search(f"tags.`{KEY}` = '{key}'")
        return found[0] if found else None

    def children(self, parent: Run) -> dict[str, Run]:
        """The nested runs of a run by their keys."""
        found = self._search(f"tags.`{PARENT}` = '{parent.info.run_id}'")
        return {run.data.tags[KEY]: run for run in found}

    def _search(self, where: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment], where, ViewType.ACTIVE_ONLY, max_results=1000))

    def log(self, run_id: str, found: Iterable[Metric]) -> None:
        """Add points in batches; a point that is there already stays one."""
        rows = list(found)
        for start in range(0, len(rows), BATCH):
            self.client.log_batch(run_id, metrics=rows[start : start + BATCH])

    def history(self, run: Run, prefix: str) -> list[Metric]:
        """Every point of a run's metrics whose names begin with `prefix`."""
        keys = [name for name in run.data.metrics if name.startswith(prefix)]
        return [point for name in keys for point in self.client.get_metric_history(run.info.run_id, name)]

    def tag(self, run: Run, name: str, value: str) -> None:
        """Set a tag, here and there."""
        self.client.set_tag(run.info.run_id, name, value)
        run.data.tags[name] = value

    def finish(self, run: Run) -> None:
        """Mark a run as finished."""
        if run.info.status != "FINISHED":
            self.client.set_terminated(run.info.run_id)

    def delete(self, runs: Iterable[Run]) -> None:
        """Delete runs (MLflow keeps deleted runs out of sight until `mlflow gc`)."""
        for run in runs:
            self.client.delete_run(run.info.run_id)
