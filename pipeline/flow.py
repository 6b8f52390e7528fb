"""The Prefect flow: the stages of dvc.yaml by name, in lanes, with retries.

DVC decides what has to run, Prefect shows it and tries again. What all arms share comes first, then each
arm and seed as a chain in one of a few lanes, then what needs them all. No server is needed; with
PREFECT_API_URL set, the run shows up there.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

# Read when Prefect is imported: no analytics, no promotion, and log lines as they are.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_COLORS", "false")
os.environ.setdefault("PREFECT_SHOW_PROMOTIONAL_CONTENT", "false")

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline.dvc import Repro, Timing, ending_children, stopping, timings_path
from pipeline.graph import Plan, Stage, load_graph, make_plan
from pipeline.warm import warm_stages
from rank_e.config import Params, load
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
def run_chain(project: Path, stages: Sequence[Stage], retries: int, count: Count) -> None:
    """Stages one after another in one DVC process."""
    repro = Repro(project, stages)
    try:
        for stage in stages:
            run_stage.with_options(name=stage.label, task_run_name=stage.label, retries=retries)(repro, stage, count)
    finally:
        repro.close()


def batches(level: Sequence[Stage], lanes: int) -> list[tuple[Stage, ...]]:
    """The stages of a level dealt out to the lanes, in turn."""
    return [tuple(level[lane::lanes]) for lane in range(min(lanes, len(level)))]


def chain_jobs(plan: Plan, params: Params) -> list[tuple[str, tuple[Stage, ...]]]:
    """The chains, long ones first (an arm that trains its decoder), seeds in order: lanes end closer
    together."""
    order = sorted(plan.chains, key=lambda chain: (not params.arm(chain[0]).decoder.train, chain[1]))
    jobs = [(f"{arm} s{seed}", plan.chains[arm, seed]) for arm, seed in order]
    return [*jobs, ("shared", plan.beside)] if plan.beside else jobs


@flow(name="rank-e", flow_run_name="rank-e", validate_parameters=False)
def rank_e_flow(project: str = ".", lanes: int = 2, retries: int = 1) -> None:
    """Reproduce all stages of the project's dvc.yaml; RunError names the chains that failed.

    A failing chain does not stop the others: what they computed is kept, and the next run goes on from there.
    """
    folder = Path(project).resolve()
    params = load(folder / "params.yaml")
    plan = make_plan(load_graph(folder))
    timings_path(folder).unlink(missing_ok=True)
    count = Count(len(plan.stages))
    phases = [
        *([("shared", batch) for batch in batches(level, lanes)] for level in plan.before),
        chain_jobs(plan, params),
        *([("final", batch) for batch in batches(level, lanes)] for level in plan.after),
    ]
    with ending_children(), warm_stages(folder):
        for jobs in phases:
            _run_phase(folder, jobs, retries, count)


def _run_phase(folder: Path, jobs: Sequence[tuple[str, tuple[Stage, ...]]], retries: int, count: Count) -> None:
    """Run jobs side by side and wait for all of them; RunError names those that failed."""
    futures = [
        run_chain.with_options(name=name, task_run_name=name).submit(folder, stages, retries, count)
        for name, stages in jobs
    ]
    wait(futures)
    failed = [name for (name, _), future in zip(jobs, futures, strict=True) if not future.state.is_completed()]
    if failed:
        raise RunError(f"these chains failed: {', '.join(failed)}; mend the cause and `rank-e run` again")


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
