"""The Prefect flow: the stages of dvc.yaml by name, several at a time, with retries.

DVC decides what has to run, Prefect shows it and tries again. Arms and seeds go through the rounds together: whenever
one of the `jobs` is free, it takes the next group of nodes whose inputs are there, so that rounds can be compared while
later ones still run. No server is needed; with PREFECT_API_URL set, the run shows up there.
"""

import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

# Read when Prefect is imported: no analytics, no promotion, log lines as they are, and time for its own server to start
# on a busy machine (20 s by default).
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_COLORS", "false")
os.environ.setdefault("PREFECT_SHOW_PROMOTIONAL_CONTENT", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Failed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import ValidationError

from pipeline.dvc import Repro, StageError, Timing, ending_children, stopping, timings_path
from pipeline.graph import Node, NodeGroup, load_graph, make_groups
from pipeline.guardian import FAREWELLS, working
from pipeline.repair import cache_folder, distrust, repair
from rank_e.config import load
from rank_e.errors import RankEError
from stages.runtime.artifacts import REPAIR
from stages.runtime.locks import LockedError
from stages.runtime.warm import warm_stages

RETRY_DELAY = 3
"""Seconds before a failed stage is tried again."""


class RunError(RankEError):
    """The flow ended before all stages did."""


class StageCount:
    """How many stages have ended, of how many, for the log."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.began = time.monotonic()

    def line(self, timing: Timing) -> str:
        """One line for a stage that has ended."""
        self.done += 1
        spent = time.monotonic() - self.began
        seconds = f"{timing.seconds:.1f} s" if timing.outcome == "ran" else ""
        peak = "" if timing.peak_rss_mb is None else f"peak {timing.peak_rss_mb:.0f} MB"
        words = ", ".join(part for part in (timing.outcome, seconds, peak) if part)
        return f"{timing.label}: {words} [{self.done}/{self.total}, {spent:.0f} s]"


def _again(task: Any, run: Any, state: Any) -> bool:
    """Try again unless the run is being stopped."""
    return not stopping()


@task(cache_policy=NO_CACHE, persist_result=False, retry_delay_seconds=RETRY_DELAY, retry_condition_fn=_again)
def run_node(repro: Repro, node: Node, count: StageCount) -> None:
    """One stage of DVC; its output goes to this task's log."""
    logger = get_run_logger()
    try:
        timing = repro.run(node, logger.info)
    except StageError as error:
        if REPAIR in str(error):
            distrust(repro.project)
        raise
    logger.info(count.line(timing))


@task(cache_policy=NO_CACHE, persist_result=False)
def run_group(project: Path, nodes: Sequence[Node], retries: int, count: StageCount) -> None:
    """Nodes one after another in one DVC process."""
    repro = Repro(project, nodes)
    try:
        for node in nodes:
            run_node.with_options(name=node.label, task_run_name=node.label, retries=retries)(repro, node, count)
    finally:
        repro.close()


@flow(name="rank-e", flow_run_name="rank-e", validate_parameters=False)
def rank_e_flow(project: str = ".", jobs: int = 2, retries: int = 1, wait: float = 0.0) -> State[None] | None:
    """Reproduce all stages of the project's dvc.yaml; RunError names the groups that failed.

    A failure stops only what waits for it: the rest is computed and kept, and the next run goes on from there. Served,
    it repairs first, as `rank-e run` does; it fails where another works in the project for more than `wait` seconds.
    """
    folder = Path(project).resolve()
    if PREFECT_API_URL.value():
        FAREWELLS.append(partial(say_cancelled, flow_run.id))
    load(folder / "params.yaml")  # all of its problems at once, before anything begins
    try:
        with working(folder, "rank-e serve", wait) as alone:
            if alone:
                for line in repair(folder, cache_folder(folder), beginning=True):
                    get_run_logger().info(line)
            _reproduce(folder, jobs, retries)
    except LockedError as error:
        return Failed(message=str(error))
    return None


def say_cancelled(flow_run_id: str) -> None:
    """Tell the Prefect server at PREFECT_API_URL, which would show this run as running for ever."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Cancelled(message="stopped by a signal"), force=True)


def _reproduce(folder: Path, jobs: int, retries: int) -> None:
    groups = make_groups(load_graph(folder))
    timings_path(folder).unlink(missing_ok=True)
    count = StageCount(sum(len(group.nodes) for group in groups))
    with ending_children(), warm_stages(folder, stopping):
        failed = _run_groups(folder, groups, jobs, retries, count)
    if failed:
        raise RunError(f"these failed: {', '.join(failed)}; fix the cause and `rank-e run` again")


def _run_groups(folder: Path, groups: Sequence[NodeGroup], jobs: int, retries: int, count: StageCount) -> list[str]:
    """Keep `jobs` groups running, each time the first whose turn has come; the names of those that failed.

    What waits for a failed group is left out; everything else is done.
    """
    waiting, done, failed = list(groups), set[str](), list[str]()
    running: dict[str, PrefectFuture[None]] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    while True:
        ready = [group for group in waiting if group.waits <= done]
        for group in ready[: jobs - len(running)]:
            waiting.remove(group)
            task = run_group.with_options(name=group.name, task_run_name=group.name)
            running[group.name] = task.submit(folder, group.nodes, retries, count)
            running[group.name].add_done_callback(partial(_put, ended, group.name))
        if not running:
            return failed
        name = ended.get()
        future = running.pop(name)
        future.wait()  # it is over: this fetches its final state
        if future.state.is_completed():
            done.add(name)
        else:
            failed.append(name)


def _put(ended: queue.SimpleQueue[str], name: str, future: PrefectFuture[None]) -> None:
    ended.put(name)


def _threads(jobs: int) -> TaskRunner[PrefectFuture[Any]]:
    return cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=jobs))


def run(project: Path, jobs: int, retries: int) -> None:
    """Run the flow here and now."""
    if not PREFECT_API_URL.value():
        # Where Ctrl-C would end Prefect's temporary server in the middle of a stage's end.
        problems: list[str] = []
        thread = threading.Thread(target=_start_server, args=(problems,))
        thread.start()
        thread.join()
        if problems:
            fix = "run again when the machine is less busy, or start `prefect server start` and set PREFECT_API_URL"
            raise RunError(f"Prefect's temporary server: {problems[0]}; {fix}")
    configured = rank_e_flow.with_options(task_runner=_threads(jobs))
    configured(project=str(project), jobs=jobs, retries=retries)


def _start_server(problems: list[str]) -> None:
    """In a thread of its own, since a process is born with its thread's signals held back: it never hears Ctrl-C.

    problems: gets what kept it from starting. Prefect would start another beside it, and leave this one behind.
    """
    from prefect.server.api.server import SubprocessASGIServer  # slow, and of no use with a server of one's own

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    server = SubprocessASGIServer()
    try:
        server.start()
    except RuntimeError as error:
        server.stop()
        problems.append(str(error).strip().rstrip("."))


def schedule(cron: str | None, timezone: str | None) -> CronSchedule | None:
    """The times of a scheduled run, in UTC where no zone is given; RankEError names what is no expression or zone."""
    if cron is None:
        if timezone is not None:
            raise RankEError(f"--timezone {timezone}: of what? give --cron EXPRESSION too")
        return None
    try:
        return CronSchedule(cron=cron, timezone=timezone or "UTC")
    except ValidationError as error:
        examples = {"cron": 'minute hour day month weekday, such as "0 3 * * *"', "timezone": "such as Europe/Berlin"}
        wrong = {str(problem["loc"][0]): problem["input"] for problem in error.errors()}
        lines = (f"--{key} {value!r} cannot be read: give {examples[key]}" for key, value in wrong.items())
        raise RankEError("\n".join(lines)) from None


def check_server() -> None:
    """RankEError if no Prefect server of this version answers at PREFECT_API_URL."""
    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except Exception as error:
        fix = "start it by `prefect server start`, correct PREFECT_API_URL (it ends in /api), or unset it"
        raise RankEError(f"Prefect at {PREFECT_API_URL.value()}: {' '.join(str(error).split())}; {fix}") from None


def serve(project: Path, times: CronSchedule | None, jobs: int, retries: int, wait: float) -> None:
    """Offer the flow to the Prefect server at PREFECT_API_URL, on a schedule and from its page; does not return."""
    rank_e_flow.with_options(task_runner=_threads(jobs)).serve(
        name="rank-e",
        schedule=None if times is None else Cron(times.cron, timezone=times.timezone),
        parameters={"project": str(project), "jobs": jobs, "retries": retries, "wait": wait},
    )
