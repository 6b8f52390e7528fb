"""A Prefect server, a pool and a worker on loopback: deployments, a run that waits for another, a cancel, the end."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
)
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from pipeline.profile import profile_names
from tests.helpers.project import dvc
from tests.pipeline.test_flow import environment

ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect"]
pytestmark = pytest.mark.slow


def until(said: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy pipeline, which the deployments of prefect.yaml are made in."""
    folder = tmp_path_factory.mktemp("served") / "toy"
    shutil.copytree(template, folder, symlinks=True)
    shutil.copy(ROOT / "prefect.yaml", folder)
    (folder / "profiles").mkdir()
    shutil.copy(folder / "params.yaml", folder / "profiles/shapes.yaml")
    return folder


@pytest.fixture(scope="module")
def client(project: Path) -> Iterator[SyncPrefectClient]:
    """Of a server of its own with the pool `gpu`, a worker, and the deployments."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}/api"
    given = environment(project) | {"PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    given.pop("MLFLOW_TRACKING_URI", None)
    silent: dict[str, Any] = {"env": given, "cwd": project, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port], **silent)]
    try:
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as found:
            until(lambda: found.api_healthcheck() is None)
            found.create_work_pool(WorkPoolCreate(name="gpu", type="process"))
            subprocess.run([*PREFECT, "--no-prompt", "deploy", "--all"], check=True, **silent)
            started.append(subprocess.Popen([*PREFECT, "worker", "start", "--pool", "gpu"], **silent))
            yield found
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGINT)
        for process in started:
            process.wait(60)


def begin(client: SyncPrefectClient, **parameters: Any) -> UUID:
    deployment = client.read_deployment_by_name("co-evolution/demo")
    given = {**deployment.parameters, **parameters}
    return client.create_flow_run_from_deployment(deployment.id, parameters=given).id


def state(client: SyncPrefectClient, run: UUID) -> str:
    found = client.read_flow_run(run).state
    assert found is not None
    return found.name or ""


def states(client: SyncPrefectClient, run: UUID) -> dict[str, str]:
    """The states of a run's subflows and of all tasks by their names."""
    inside = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
    flows = client.read_flow_runs(flow_run_filter=inside)
    ids = FlowRunFilter(id=FlowRunFilterId(any_=[run, *(item.id for item in flows)]))
    return {item.name: item.state_name or "" for item in (*flows, *client.read_task_runs(flow_run_filter=ids))}


def test_the_deployments_are_offered_with_a_typed_form(client: SyncPrefectClient, project: Path) -> None:
    for name, profile in (("demo", "shapes"), ("llamagen-xl", "llamagen-xl-clip"), ("janus-pro", "janus-pro-1b-clip")):
        found = client.read_deployment_by_name(f"co-evolution/{name}")
        limit = found.global_concurrency_limit
        assert (found.work_pool_name, found.parameters["profile"]) == ("gpu", profile)
        assert limit is not None and limit.limit == 1
        assert [schedule.active for schedule in found.schedules] == ([False] if name == "demo" else [])
        form = found.parameter_openapi_schema or {}
        assert form["properties"]["profile"]["anyOf"][0] == {"enum": profile_names(ROOT), "type": "string"}
        assert form["properties"]["jobs"]["minimum"] == 1 and form["properties"]["jobs"]["description"]
    for wrong in ({"jobs": 0}, {"profile": "nothing"}, {"seeds": ["x"]}):
        with pytest.raises(PrefectHTTPStatusError):
            begin(client, **wrong)


def test_an_overlapping_run_waits_and_a_cancelled_one_ends_all_of_its_stages(
    client: SyncPrefectClient, project: Path
) -> None:
    (project / "slow-start-frozen").touch()
    first = begin(client, arms=["frozen"], only=["start"], track=False)
    until(lambda: (project / "pid").is_file() and (project / "pid").read_text() != "")
    pid = int((project / "pid").read_text())
    assert state(client, first) == "Running"
    name = client.read_flow_run(first).name
    assert name.startswith("shapes · frozen · 20")
    second = begin(client, only=["reference"])
    until(lambda: state(client, second) == "AwaitingConcurrencySlot")
    (project / "slow-start-frozen").unlink()
    client.set_flow_run_state(first, Cancelling(), force=True)
    asked = time.monotonic()
    until(lambda: not psutil.pid_exists(pid), 30)
    assert time.monotonic() - asked < 5
    until(lambda: state(client, first) != "Cancelling")
    until(lambda: set(states(client, first).values()) == {"Cancelled"})
    assert state(client, first) == "Cancelled" and "frozen · s0 · start" in states(client, first)
    # The one that waited: done, and tracked as `rank-e run` tracks.
    until(lambda: state(client, second) in ("Completed", "Failed", "Crashed"))
    assert state(client, second) == "Completed"
    assert states(client, second) == {"real images": "Completed"} and (project / "mlflow.db").is_file()
    artifacts = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[second]))
    )
    assert [(item.type, item.data) for item in artifacts] == [("progress", 100.0)]


def test_a_served_run_frees_rounds_and_hands_over(client: SyncPrefectClient, project: Path, tmp_path: Path) -> None:
    dvc(project, "remote", "add", "team", str(tmp_path / "team"), "--quiet")
    run = begin(client, keep="last", remote="team", track=False)
    until(lambda: state(client, run) in ("Completed", "Failed", "Crashed"))
    assert state(client, run) == "Completed" and set(states(client, run).values()) == {"Completed"}
    for arm in ("frozen", "coevolved"):
        first, last = (project / f"out/{arm}/s0/r{number}" for number in (1, 2))
        assert (first / "f.txt").is_file() and not (first / "optimizer.safetensors").exists()
        assert (last / "optimizer.safetensors").read_text() == f"optimizer of policy-{arm}-2"
    shared = {path.read_bytes() for path in (tmp_path / "team").rglob("*") if path.is_file()}
    assert {b"report", b"policy-frozen-1", b"optimizer of policy-frozen-2"} <= shared
    assert b"optimizer of policy-frozen-1" not in shared

    lost = begin(client, remote="elsewhere", track=False)
    until(lambda: state(client, lost) in ("Completed", "Failed", "Crashed"))
    found = client.read_flow_run(lost).state
    assert found is not None and found.name == "Failed" and "remote elsewhere: " in (found.message or "")
