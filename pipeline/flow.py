"""The Prefect flow `co-evolution`: a subflow for each arm and seed, a task for each stage, with retries.

DVC decides what has to run, Prefect shows it and tries again. Arms and seeds go through the rounds together: whenever
one of the `jobs` is free, it takes the next group of nodes whose inputs are there, so that rounds can be compared while
later ones still run. No server is needed; with PREFECT_API_URL set, the run shows up there.
"""

import threading
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run, task_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed, State
from prefect.tasks import exponential_backoff
from pydantic import Field

from pipeline.board import Board, in_threads
from pipeline.dvc import RefusedError, Repro, StageError, ending_children, stopping, timings_path
from pipeline.graph import Chain, Node, NodeGroup
from pipeline.guardian import leave, working
from pipeline.handover import between
from pipeline.plan import Cell, Choice, Plan, check_choice, make_plan, some, write_part
from pipeline.profile import PROFILES, ProfileName, name_of, write_profile
from pipeline.repair import cache_folder, distrust, repair
from pipeline.run_page import ON_CPU, Progress, links, outcome, show_round, title, words
from pipeline.telling import STOPPED, say_cancelled, say_task_cancelled, telling
from pipeline.tracking.beside import tracker_beside
from pipeline.tracking.stamp import tracked
from rank_e.config import load
from rank_e.config.profiles import load_profile
from rank_e.errors import RankEError
from stages.runtime.artifacts import REPAIR
from stages.runtime.warm import warm_stages

RETRY_DELAY = 3
"""Seconds before a failed stage is tried again; twice as many before each further try."""
GPU = "gpu"
"""The tag of stages that compute on a GPU: `prefect concurrency-limit create gpu N` has N of them at a time."""


@dataclass
class Run:
    """What all tasks of a run share. left: how many nodes of a round are to be done; unlinked: rounds whose table says
    nothing of MLflow; causes: what failed stages said last.
    """

    project: Path
    board: Board
    progress: Progress
    retries: int
    tags: set[str]
    left: Counter[Cell] = field(default_factory=Counter)
    unlinked: list[Cell] = field(default_factory=list)
    causes: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


RUN: ContextVar[Run] = ContextVar("run")
"""The run that a thread works for; no parameter, since Prefect would write it down."""


def _again(task: Any, run: Any, state: State[Any]) -> bool:
    """Try again unless the run is being stopped, or the stage said that this is of no use."""
    return not stopping() and not isinstance(state.data, RefusedError)


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_again)
def run_node(repro: Repro, node: Node) -> State[None]:
    """One stage of DVC; its output goes to this task's log. What DVC kept or restored is `Cached`."""
    logger = get_run_logger()
    with telling(partial(say_task_cancelled, task_run.id)):
        try:
            timing = repro.run(node, logger.info)
        except StageError as error:
            if REPAIR in str(error):
                distrust(repro.project)
            if stopping():
                return Cancelled(message=STOPPED)
            RUN.get().causes[node.address] = error.cause
            raise
    RUN.get().causes.pop(node.address, None)  # another try has mended it
    logger.info(RUN.get().progress.line(node, timing))
    return Completed(name="Completed" if timing.outcome == "ran" else "Cached", message=outcome(timing))


@flow(name="arm", flow_run_name="{arm} · s{seed}")
def arm_flow(arm: str, seed: int) -> State[None]:
    """All stages of an arm and seed, as their turns come."""
    with telling(partial(say_cancelled, flow_run.id)):
        return work_through((arm, seed))


def work_through(chain: Chain | None) -> State[None]:
    """Take a chain's groups from the board until none is left, in as many threads as may have one at a time."""
    board, failed = RUN.get().board, list[str]()

    def work() -> None:
        while (group := board.take(chain)) is not None:
            succeeded = False
            try:
                succeeded = run_group(group)
            except Exception:  # Prefect's own: a stage's is in its task's state
                get_run_logger().exception(group.name)
            finally:
                if not succeeded:
                    failed.append(group.name)
                board.end(group, succeeded)

    in_threads([work] * board.jobs)
    if stopping():
        return Cancelled(message=STOPPED)
    if failed:
        return Failed(message=f"these failed: {some(failed)}")
    if blocked := [group.name for group in board.blocked if group.chain == chain]:
        return Failed(name="Blocked", message=f"not begun, since what they need failed: {some(blocked)}")
    return Completed()


def run_group(group: NodeGroup) -> bool:
    """Nodes one after another in one DVC process, each as a task; whether all of them are done.

    Where a server may limit how many stages compute on the GPU, each has a process of its own: DVC would begin the next
    one without asking.
    """
    run = RUN.get()
    alone = run.tags and PREFECT_API_URL.value()
    parts = [(node,) for node in group.nodes] if alone else [group.nodes]
    for part in parts:
        repro = Repro(run.project, part)
        try:
            for node in part:
                configured = run_node.with_options(
                    name=words(node),
                    task_run_name=title(node),
                    retries=run.retries,
                    retry_delay_seconds=exponential_backoff(RETRY_DELAY),
                    tags=set() if node.name in ON_CPU else run.tags,
                )
                if not configured(repro, node, return_state=True).is_completed():
                    return False
                end_of_node(node)
        finally:
            repro.close()
    return True


def end_of_node(node: Node) -> None:
    """Show the numbers of a round when the last of its nodes is done."""
    if node.arm is None or node.seed is None or node.round is None:
        return
    run, cell = RUN.get(), (node.arm, node.seed, node.round)
    with run.lock:  # policy and decoder of a round may end at once
        run.left[cell] -= 1
        over = not run.left[cell]
    if over and not show_round(run.project, *cell):
        run.unlinked.append(cell)


def _run_name() -> str:
    """Profile, arms and date, such as `shapes · frozen, coevolved · 2026-11-27 04:10`."""
    given = flow_run.parameters
    folder, profile = Path(given.get("project", ".")).resolve(), given.get("profile")
    path = folder / ("params.yaml" if profile is None else PROFILES / f"{profile}.yaml")
    begun = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    try:
        arms = given.get("arms") or list(load_profile(path).arms)
        named = profile or name_of(folder)
    except RankEError:  # which the run itself says
        return f"{path.name} · {begun}"
    return f"{named} · {', '.join(arms) if len(arms) <= 3 else f'{len(arms)} arms'} · {begun}"


@flow(name="co-evolution", flow_run_name=_run_name)
def co_evolution(
    project: str = ".",
    profile: ProfileName | None = None,
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
    rounds: Annotated[int | None, Field(ge=1)] = None,
    only: list[str] | None = None,
    jobs: Annotated[int, Field(ge=1)] = 2,
    retries: Annotated[int, Field(ge=0)] = 1,
    wait: Annotated[float, Field(ge=0)] = 0.0,
    track: bool = True,
    keep: str | None = None,
    remote: str | None = None,
) -> State[None]:
    """Post-train by ranked policy and decoder co-evolution: reproduce the stages of a project's dvc.yaml.

    Failed says the cause and the groups that failed. A failure stops only what waits for it: the rest is computed and
    kept, and the next run goes on from there. Served, it repairs first and tracks, as `rank-e run` does.

    Args:
        project: The project's folder on the worker's machine.
        profile: Written over params.yaml first; none leaves params.yaml as it is.
        arms: These arms alone; none stands for all.
        seeds: These seeds alone; none stands for all.
        rounds: Up to this round; none stands for all.
        only: These stages, such as evaluation, and what they need; none stands for all.
        jobs: Stages at a time.
        retries: Tries after a failure that another try may mend.
        wait: Seconds to wait for another run of the project.
        track: Copy to MLflow.
        keep: Rounds whose states stay, such as last,best,every=10; none stands for all.
        remote: The DVC remote that stages come from, and go to as they end; none stands for no sharing.
    """
    folder = Path(project).resolve()
    choice = Choice(tuple(arms or ()), tuple(seeds or ()), tuple(only or ()), rounds)
    # A worker's process has nothing else to end, and whoever cancels it waits.
    ending = ending_children(None if deployment.id is None else partial(leave, haste=True))
    with telling(partial(say_cancelled, flow_run.id)):
        try:
            # All problems of the params at once, before anything begins.
            given = (
                load(folder / "params.yaml") if profile is None else load_profile(folder / PROFILES / f"{profile}.yaml")
            )
            check_choice(folder, choice, given)
            with working(folder, "rank-e serve", wait) as alone, ending:
                if profile is not None:
                    get_run_logger().info(write_profile(folder, profile))
                if alone:
                    for line in repair(folder, cache_folder(folder), beginning=True):
                        get_run_logger().info(line)
                with between(folder, keep, remote) as failures:
                    return _reproduce(folder, make_plan(folder, choice), jobs, retries, track, failures)
        except RankEError as error:  # returned, since Prefect would print a traceback of what is raised
            return Failed(message=str(error))


def _reproduce(folder: Path, plan: Plan, jobs: int, retries: int, track: bool, failures: list[str]) -> State[None]:
    """failures: what went wrong between stages so far, in lines."""
    logger = get_run_logger()
    for line in plan.said:
        logger.info(line)
    if not plan.groups and not plan.report and (not track or tracked(folder)):
        return Completed(name="Cached", message=plan.said[0])
    timings_path(folder).unlink(missing_ok=True)
    device = load(folder / "params.yaml").runtime.device
    board, progress = Board(plan.groups, jobs, stopping), Progress(folder, plan.nodes, jobs)
    run = Run(folder, board, progress, retries, set() if device == "cpu" else {GPU}, plan.rounds)
    RUN.set(run)
    with tracker_beside(folder, track) as untracked:
        if plan.groups:
            progress.begin()
            with ending_children(), warm_stages(folder, stopping):
                _run_all(plan)
                if stopping():
                    return Cancelled(message=STOPPED)
        if board.failed:
            return Failed(message=failure(run))
        if plan.report:
            logger.info(write_part(folder, plan))
    for cell in run.unlinked if links(folder) else ():  # their runs were made in the last seconds
        show_round(folder, *cell)
    if wrong := [*untracked, *failures]:
        return Failed(message=f"every stage is done, but {wrong[0]}")
    return Completed(message=f"{len(plan.nodes)} stages done, {len(plan.kept)} kept")


def failure(run: Run) -> str:
    """The first cause in its stage's own words, and all that failed, in one line."""
    failed = f"these failed: {some(run.board.failed)}; `rank-e run` goes on from there"
    causes = list(dict.fromkeys(run.causes.values()))
    if not causes:  # Prefect's own error, which it has logged
        return failed
    more = "" if len(causes) == 1 else f", and {len(causes) - 1} more causes above"
    return f"{causes[0]}{more} ({failed})"


def _run_all(plan: Plan) -> None:
    """A subflow for each arm and seed; what they share is done in the flow itself."""
    board = RUN.get().board

    def work(chain: Chain | None) -> None:
        try:
            if chain is None:
                work_through(None)
            else:
                arm_flow(*chain, return_state=True)
        finally:
            board.abandon(chain)

    in_threads([partial(work, chain) for chain in dict.fromkeys(group.chain for group in plan.groups)])
