"""The Prefect flow: the stages of dvc.yaml by name, in lanes, with retries.

DVC decides what has to run, Prefect shows it and tries again. Arms and seeds go through the rounds together, each
lane taking the next job whose inputs are there, so that rounds can be compared while later ones still run. No server
is needed; with PREFECT_API_URL set, the run shows up there.
"""

import os
import queue
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

# Read when Prefect is imported: no analytics, no promotion, and log lines as they are.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_COLORS", "false")
os.environ.setdefault("PREFECT_SHOW_PROMOTIONAL_CONTENT", "false")

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline.dvc import Repro, Timing, ending_children, stopping, timings_path
from pipeline.graph import Job, Stage, load_graph, make_jobs
from pipeline.warm import warm_stages
from rank_e.config import load
from rank_e.errors import RankEError

RETRY_DELAY = 3
"""Seconds before a failed stage is tried again."""


class RunError(RankEError):
    """The flow ended before all stages did."""


class Count:
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
def run_stage(repro: Repro, stage: Stage, count: Count) -> None:
    """One stage of DVC; its output goes to this task's log."""
    logger = get_run_logger()
    logger.info(count.line(repro.run(stage, logger.info)))


@task(cache_policy=NO_CACHE, persist_result=False)
def run_job(project: Path, stages: Sequence[Stage], retries: int, count: Count) -> None:
    """Stages one after another in one DVC process."""
    repro = Repro(project, stages)
    try:
        for stage in stages:
            run_stage.with_options(name=stage.label, task_run_name=stage.label, retries=retries)(repro, stage, count)
    finally:
        repro.close()


@flow(name="rank-e", flow_run_name="rank-e", validate_parameters=False)
def rank_e_flow(project: str = ".", lanes: int = 2, retries: int = 1) -> None:
    """Reproduce all stages of the project's dvc.yaml; RunError names the jobs that failed.

    A failure stops only what waits for it: the rest is computed and kept, and the next run goes on from there.
    """
    folder = Path(project).resolve()
    load(folder / "params.yaml")  # all of its problems at once, before anything begins
    jobs = make_jobs(load_graph(folder))
    timings_path(folder).unlink(missing_ok=True)
    count = Count(sum(len(job.stages) for job in jobs))
    with ending_children(), warm_stages(folder):
        failed = _run_jobs(folder, jobs, lanes, retries, count)
    if failed:
        raise RunError(f"these failed: {', '.join(failed)}; fix the cause and `rank-e run` again")


def _run_jobs(folder: Path, jobs: Sequence[Job], lanes: int, retries: int, count: Count) -> list[str]:
    """Keep every lane busy with the first job whose turn has come; the names of those that failed.

    What waits for a failed job is left out; everything else is done.
    """
    waiting, done, failed = list(jobs), set[str](), list[str]()
    running: dict[str, PrefectFuture[None]] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    while True:
        ready = [job for job in waiting if job.waits <= done]
        for job in ready[: lanes - len(running)]:
            waiting.remove(job)
            task = run_job.with_options(name=job.name, task_run_name=job.name)
            running[job.name] = task.submit(folder, job.stages, retries, count)
            running[job.name].add_done_callback(partial(_put, ended, job.name))
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


def _lanes(count: int) -> TaskRunner[PrefectFuture[Any]]:
    return cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=count))


def run(project: Path, lanes: int, retries: int) -> None:
    """Run the flow here and now."""
    configured = rank_e_flow.with_options(task_runner=_lanes(lanes))
    configured(project=str(project), lanes=lanes, retries=retries)


def serve(project: Path, cron: str | None, lanes: int, retries: int) -> None:
    """Offer the flow to the Prefect server at PREFECT_API_URL, on a schedule and from its page; does not
    return."""
    rank_e_flow.with_options(task_runner=_lanes(lanes)).serve(
        name="rank-e", cron=cron, parameters={"project": str(project), "lanes": lanes, "retries": retries}
    )
