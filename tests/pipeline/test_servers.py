"""Servers of Prefect and MLflow, a pool and a worker on loopback, and what a person sees of a run on their pages.

Deployments, a run that waits for another, a cancel, the end.
"""

import re
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
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from pipeline.profile import profile_names
from tests.helpers.browser import CHROMIUM, DARK, LIGHT, Page, browser
from tests.helpers.fake_artifacts import write_project
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
    """The toy pipeline, which the deployments of prefect.yaml are made in, and artifacts for MLflow."""
    folder = tmp_path_factory.mktemp("served") / "toy"
    shutil.copytree(template, folder, symlinks=True)
    shutil.copy(ROOT / "prefect.yaml", folder)
    write_project(folder, seeds=[0], rounds=2)
    (folder / "profiles").mkdir()
    shutil.copy(folder / "params.yaml", folder / "profiles/shapes.yaml")
    return folder


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with an empty store."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


@pytest.fixture(scope="module")
def client(project: Path, mlflow: str) -> Iterator[SyncPrefectClient]:
    """Of a server of its own with the pool `gpu`, a worker, and the deployments."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    given = environment(project) | {"PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    given["MLFLOW_TRACKING_URI"] = mlflow
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


@pytest.fixture(scope="module")
def whole(client: SyncPrefectClient, project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UUID, Path]:
    """A complete run that frees rounds and hands over to a remote, and that remote."""
    team = tmp_path_factory.mktemp("team")
    dvc(project, "remote", "add", "team", str(team), "--quiet")
    run = begin(client, keep="last", remote="team")
    until(lambda: state(client, run) in ("Completed", "Failed", "Crashed"))
    assert state(client, run) == "Completed" and set(states(client, run).values()) == {"Completed"}
    return run, team


def begin(client: SyncPrefectClient, **parameters: Any) -> UUID:
    deployment = client.read_deployment_by_name("co-evolution/demo")
    given = {**deployment.parameters, **parameters}
    return client.create_flow_run_from_deployment(deployment.id, parameters=given).id


def state(client: SyncPrefectClient, run: UUID) -> str:
    found = client.read_flow_run(run).state
    assert found is not None
    return found.name or ""


def inside(client: SyncPrefectClient, run: UUID) -> list[FlowRun]:
    """A run's subflows."""
    parent = FlowRunFilterParentFlowRunId(any_=[run])
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parent))


def states(client: SyncPrefectClient, run: UUID) -> dict[str, str]:
    """The states of a run's subflows and of all tasks by their names."""
    flows = inside(client, run)
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
    client: SyncPrefectClient, project: Path, mlflow: str
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
    assert states(client, second) == {"real images": "Completed"} and not (project / "mlflow.db").exists()
    assert MlflowClient(mlflow).get_experiment_by_name("rank-e") is not None
    artifacts = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[second]))
    )
    assert [(item.type, item.data) for item in artifacts] == [("progress", 100.0)]


def test_a_served_run_frees_rounds_and_hands_over(
    client: SyncPrefectClient, project: Path, whole: tuple[UUID, Path]
) -> None:
    _, team = whole
    for arm in ("frozen", "coevolved"):
        first, last = (project / f"out/{arm}/s0/r{number}" for number in (1, 2))
        assert (first / "f.txt").is_file() and not (first / "optimizer.safetensors").exists()
        assert (last / "optimizer.safetensors").read_text() == f"optimizer of policy-{arm}-2"
    shared = {path.read_bytes() for path in team.rglob("*") if path.is_file()}
    assert {b"report", b"policy-frozen-1", b"optimizer of policy-frozen-2"} <= shared
    assert b"optimizer of policy-frozen-1" not in shared

    before = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(f"{before}# mine\n")
    wrong = begin(client, arms=["forzen"], track=False)  # of the profile that the deployment names
    until(lambda: state(client, wrong) in ("Completed", "Failed", "Crashed"))
    found = client.read_flow_run(wrong).state
    assert found is not None and found.message == "arm forzen: the run of params.yaml has coevolved, frozen"
    assert (project / "params.yaml").read_text() == f"{before}# mine\n"

    lost = begin(client, remote="elsewhere", track=False)
    until(lambda: state(client, lost) in ("Completed", "Failed", "Crashed"))
    found = client.read_flow_run(lost).state
    assert found is not None and found.name == "Failed" and "remote elsewhere: " in (found.message or "")


WINDOWS = [(1280, LIGHT), (1280, DARK), (400, LIGHT), (400, DARK)]
SEEN = """
const channels = element => view.getComputedStyle(element).backgroundColor.match(/[\\d.]+/g).map(Number);
const painted = [page.body, ...page.body.querySelectorAll("*")].filter(element => {
  const [, , , alpha = 1] = channels(element);
  return alpha === 1 && element.clientWidth >= view.innerWidth / 2 && element.clientHeight >= view.innerHeight / 2;
});
const mean = ([red, green, blue]) => (red + green + blue) / 3;
return {wide: page.documentElement.scrollWidth, ground: painted.map(element => mean(channels(element)))};
"""
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: `apt-get install chromium`")


def check(page: Page, width: int, grounds: tuple[float, float] = (0, 255)) -> None:
    """Nothing lies beside the window, large areas are as bright as they should be, and no script failed."""
    found = page.run(SEEN)
    assert found["wide"] <= width and found["ground"]
    assert grounds[0] <= min(found["ground"]) and max(found["ground"]) <= grounds[1]
    assert [line for line in page.console if "exceptionDetails" in line] == []


def open_tab(page: Page, url: str, name: str) -> None:
    """A tab of one of Prefect's pages, which a narrow window has in a list to choose from."""
    page.go(url)
    page.until(name)
    page.run(f"""
        const tab = [...page.querySelectorAll("[role=tablist] li")].find(item => item.textContent === "{name}");
        if (tab) return tab.click();
        const chooser = page.querySelector("select[name=tabs]");
        chooser.value = "{name}";
        chooser.dispatchEvent(new view.Event("change"));""")


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [WINDOWS[0], WINDOWS[-1]])
def test_the_pages_of_a_run_in_prefect_read_as_the_method(
    client: SyncPrefectClient, whole: tuple[UUID, Path], tmp_path: Path, width: int, scheme: str
) -> None:
    run, _ = whole
    server, name = str(client.api_url).partition("/api")[0], client.read_flow_run(run).name
    arm = next(item for item in inside(client, run) if item.name == "coevolved · s0")
    with browser(tmp_path, width=width, scheme=scheme) as page:
        open_tab(page, f"{server}/runs/flow-run/{run}", "Subflow Runs")
        page.until(name, "2 Flow runs", "frozen · s0", "coevolved · s0", "Completed")
        check(page, width)  # whose colours are Prefect's own setting
        open_tab(page, f"{server}/runs/flow-run/{run}", "Artifacts")
        page.until("PROGRESS", "stages; about 0 seconds left")
        open_tab(page, f"{server}/runs/flow-run/{arm.id}", "Task Runs")
        stages = ("start", "round 1 · policy update", "round 2 · policy update")
        page.until("(3 Completed)", *(f"coevolved · s0 · {stage}" for stage in stages))
        check(page, width)


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_the_charts_of_mlflow_show_the_arms_the_headline_first(
    mlflow: str, whole: tuple[UUID, Path], tmp_path: Path, width: int, scheme: str
) -> None:
    experiment = MlflowClient(mlflow).get_experiment_by_name("rank-e")
    assert experiment is not None
    with browser(tmp_path, width=width, scheme=scheme) as page:
        page.go(f"{mlflow}/#/experiments/{experiment.experiment_id}/runs?compareRunsMode=CHART")
        text = page.until("coevolved s0", "frozen s0", "base", "1 headline", "5 categories")
        check(page, width, (200, 255) if scheme == LIGHT else (0, 60))
        sections = [line for line in text.splitlines() if re.fullmatch("[1-5] [a-z ]+", line)]
        assert sections == sorted(sections) and sections[0] == "1 headline"
        if width == 1280:  # below it no chart is in the window
            page.until("1 headline/accuracy", "coevolved s0 (1 headline/accuracy)", "frozen s0 (1 headline/accuracy)")
