"""The few things that tracking asks of MLflow, in batches, with bounded patience and one-line errors."""

import getpass
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

# Read when MLflow is imported: a dead server must cost seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.tracking.local import bring_home, file_of, make_whole
from pipeline.tracking.lock import TrackingError
from pipeline.tracking.stamp import EXPERIMENT, server_of
from stages.report.figures import colour
from stages.runtime.failures import FULL

KEY, KIND, SHA, STATE = "rank_e.round_key", "rank_e.kind", "rank_e.sha256.", "rank_e.state"
PROJECT, BY, OTHER = "rank_e.project", "rank_e.superseded_by", "rank_e.other_params"
CURRENT, SUPERSEDED = "current", "superseded"
PARENT, NAME = "mlflow.parentRunId", "mlflow.runName"
IN_MEMORY = ("sqlite://", "sqlite:///", "sqlite:///:memory:")
REMARK = "(raised as a result of Query-invoked autoflush"
"""How SQLAlchemy may begin, before it says what happened."""
BATCH, PARAMS = 800, 100
"""Points, and parameters, of one call: MLflow takes 1000 of both and of tags together."""


@contextmanager
def refusals(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line that says where, and what helps."""
    try:
        yield
    except ModuleNotFoundError as error:  # the driver of another database, which nothing else here needs
        fix = f"install it into {sys.prefix}, or set MLFLOW_TRACKING_URI"
        raise TrackingError(
            f"MLflow at {server_of(uri) or urlsplit(uri).scheme}: no module {error.name}; {fix}"
        ) from error
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error) as error:
        text = str(error).strip() or type(error).__name__
        shown = server_of(uri) or uri  # without its password
        lines = [line for line in text.splitlines() if not line.startswith(REMARK)] or [text]
        first = lines[0].partition(" with exception HTTP")[0]  # what follows are four names of one thing
        first = first.replace(uri.rstrip("/"), shown)
        if "locked" in text or "busy" in text:
            fix = "another process holds it: end that; copying is tried again"
        elif "IntegrityError" in text:
            fix = "another tracker wrote there at the same moment: copy again, by `rank-e track`"
        elif any(sign in text for sign in FULL):
            fix = "free some room; copying is tried again"
        elif "out-of-date database schema" in text:
            first, fix = first.partition(". ")[0], f"save a copy of it, then `mlflow db upgrade {uri}`"
        elif uri.startswith("http"):
            fix = "start it, or set MLFLOW_TRACKING_URI"
        else:
            fix = "correct it, or set MLFLOW_TRACKING_URI"
        raise TrackingError(f"MLflow at {shown}: {first}; {fix}") from error


def hashes(run: Run) -> dict[str, str]:
    """What has been copied into a run: the sha256 of a manifest by stage."""
    return {name.removeprefix(SHA): v for name, v in run.data.tags.items() if name.startswith(SHA)}


class Store:
    """One experiment of one MLflow store."""

    def __init__(self, uri: str, project: Path) -> None:
        """Open or create the experiment; TrackingError or what MLflow raises if the store cannot be opened."""
        if uri in IN_MEMORY:
            fix = "set MLFLOW_TRACKING_URI to a file's, such as sqlite:///mlflow.db"
            raise TrackingError(f"MLflow at {uri}: a store in memory keeps nothing; {fix}")
        self.project, self.uri, file = project, uri, file_of(uri)
        self.said = [] if file is None else make_whole(file)
        self.client = MlflowClient(uri)
        self._points: dict[str, dict[str, dict[int, float]]] = {}  # run -> key -> step -> value, as far as known
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None and found.lifecycle_stage != "active":
            shown = server_of(uri) or uri
            command = f"MLFLOW_TRACKING_URI={shown} mlflow experiments restore --experiment-id {found.experiment_id}"
            raise TrackingError(
                f"MLflow at {shown}: its experiment {EXPERIMENT} was deleted; bring it back by `{command}`"
            )
        # A local store keeps images beside the project; a server knows better.
        local = None if file is None else (project / "mlruns").resolve().as_uri()
        self.experiment = (
            found.experiment_id if found else self.client.create_experiment(EXPERIMENT, artifact_location=local)
        )
        if file is not None and file.parent == project.resolve():
            bring_home(file, self.experiment)

    def create(self, name: str, tags: Mapping[str, str], parent: str | None, began: int) -> Run:
        """A running run with its name, tags and parent; began: ms."""
        given = {**tags, NAME: name, STATE: CURRENT, KIND: "round" if parent else "arm", "mlflow.user": user()}
        given |= {"mlflow.source.name": str(self.project.resolve()), "mlflow.source.type": "PROJECT"}
        given |= {PARENT: parent} if parent else {}
        given["mlflow.runColor"] = colour(tags[KEY].partition("/")[0])  # as in the report, and on any ground legible
        run = self.client.create_run(self.experiment, start_time=began, tags=given)
        self._points[run.info.run_id] = {}
        return run

    def with_key(self, key: str) -> list[Run]:
        """The runs with this key, the current ones and then the newest ones first."""
        found = self._search(f"tags.`{KEY}` = '{key}'")
        return sorted(found, key=lambda run: (run.data.tags.get(STATE) != CURRENT, -run.info.start_time))

    def children(self, parent: Run) -> dict[str, Run]:
        """The nested runs of a run by their keys; of two with one key that into which more was copied."""
        found = self._search(f"tags.`{PARENT}` = '{parent.info.run_id}'")
        found.sort(key=lambda run: (run.data.tags.get(STATE) == CURRENT, len(hashes(run))))
        return {run.data.tags[KEY]: run for run in found}

    def below(self, key: str) -> list[Run]:
        """The rounds of an arm's key, whichever run they are nested in."""
        found = self._search(f"tags.`{KEY}` LIKE '{key}/r%'")  # a name may hold what LIKE takes for any sign
        return [run for run in found if run.data.tags[KEY].startswith(f"{key}/r")]

    def _search(self, where: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment], where, ViewType.ACTIVE_ONLY, max_results=1000))

    def add(
        self,
        run: Run,
        points: Iterable[Metric] = (),
        params: Mapping[str, str] = MappingProxyType({}),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add the points, parameters and tags that are not there yet, in batches, the tags last.

        A parameter that has another value there keeps it, and is named in a tag: it changed on the way.
        """
        rows = [point for point in points if point.step not in self._known(run, point.key)]
        fresh = [Param(name, value) for name, value in params.items() if name not in run.data.params]
        other = sorted(name for name, value in params.items() if run.data.params.get(name, value) != value)
        tags = {**tags, OTHER: ", ".join(other)[:500]} if other else tags
        changed = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
        last = [RunTag(name, value) for name, value in changed.items()]
        count = max(-(-len(rows) // BATCH), -(-len(fresh) // PARAMS), bool(last))
        for index in range(count):
            self.client.log_batch(
                run.info.run_id,
                metrics=rows[BATCH * index : BATCH * (index + 1)],
                params=fresh[PARAMS * index : PARAMS * (index + 1)],
                tags=last if index == count - 1 else [],
            )
        for point in rows:
            self._known(run, point.key)[point.step] = point.value
        run.data.params.update({row.key: row.value for row in fresh})
        run.data.tags.update(changed)

    def contradicts(self, run: Run, found: Iterable[Metric]) -> bool:
        """Whether a run has another value than one of these points at its step."""
        return any(self._known(run, point.key).get(point.step, point.value) != point.value for point in found)

    def _known(self, run: Run, key: str) -> dict[int, float]:
        """The values of a run's metric by step."""
        known = self._points.setdefault(run.info.run_id, {})
        if key not in known:
            there = key in run.data.metrics
            history = self.client.get_metric_history(run.info.run_id, key) if there else []
            known[key] = {point.step: point.value for point in history}
        return known[key]

    def log_file(self, run: Run, file: Path) -> None:
        """Keep a small file with a run."""
        place = run.info.artifact_uri
        if urlsplit(place).scheme or place.startswith("/"):
            self.client.log_artifact(run.info.run_id, str(file))
            return
        folder = self.project / place  # a store at home in its project
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)

    def log_dataset(self, run: Run, name: str, digest: str, source: str, context: str) -> None:
        """Say which data a run has used; context: training or evaluation."""
        data = Dataset(name=name, digest=digest, source_type="local", source=f'{{"uri": "{source}"}}')
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(run.info.run_id, [DatasetInput(data, tags)])

    def address(self, run: Run) -> str | None:
        """Where a server shows a run, without the password that its address may hold; None without a server."""
        place = server_of(self.uri)
        return place and f"{place}/#/experiments/{self.experiment}/runs/{run.info.run_id}"

    def finish(self, run: Run, ended: int) -> None:
        """Mark a run as finished; ended: ms."""
        if run.info.status != "FINISHED":
            self.client.set_terminated(run.info.run_id, end_time=ended)

    def supersede(self, run: Run, by: str) -> None:
        """Mark a run as one that others took the place of; nothing of it is removed."""
        self.add(run, tags={STATE: SUPERSEDED, BY: by})
        if run.info.status == "RUNNING":
            self.client.set_terminated(run.info.run_id, "KILLED")

    def revive(self, run: Run) -> None:
        """Mark a run as the one that the artifacts are of, again."""
        if run.data.tags.get(STATE) != CURRENT:
            self.add(run, tags={STATE: CURRENT})
            if run.info.status == "KILLED":
                self.client.update_run(run.info.run_id, "RUNNING")
            if BY in run.data.tags:
                self.client.delete_tag(run.info.run_id, BY)
                del run.data.tags[BY]


def user() -> str:
    """Who is at work here, as MLflow names people."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for this user's number, as in a container
        return str(os.getuid())
