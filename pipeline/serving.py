"""The flow here and now, or offered to a Prefect server: on a schedule and from its page."""

import contextlib
import signal
import threading
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import CancelledRun, FailedRun
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from pipeline.flow import co_evolution
from pipeline.plan import Choice
from rank_e.errors import RankEError


class RunError(RankEError):
    """The flow ended before all stages did."""


def run(project: Path, jobs: int, retries: int, choice: Choice) -> None:
    """Run the flow here and now; RunError says in one line why it did not complete."""
    if not PREFECT_API_URL.value():
        # Where Ctrl-C would end Prefect's temporary server in the middle of a stage's end.
        problems: list[str] = []
        thread = threading.Thread(target=_start_server, args=(problems,))
        thread.start()
        thread.join()
        if problems:
            fix = "run again when the machine is less busy, or start `prefect server start` and set PREFECT_API_URL"
            raise RunError(f"Prefect's temporary server: {problems[0]}; {fix}")
    state = co_evolution(
        project=str(project),
        arms=list(choice.arms),
        seeds=list(choice.seeds),
        rounds=choice.rounds,
        only=list(choice.only),
        jobs=jobs,
        retries=retries,
        track=False,  # `rank-e run` has begun that already
        return_state=True,
    )
    if not state.is_completed():
        with contextlib.suppress(FailedRun, CancelledRun):  # the state itself says it; any other error is a fault here
            state.result()
        raise RunError(state.message or f"the run ended as {state.name}")


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


def serve(
    project: Path,
    times: CronSchedule | None,
    jobs: int,
    retries: int,
    wait: float,
    keep: str | None,
    remote: str | None,
) -> None:
    """Offer the flow to the Prefect server at PREFECT_API_URL, on a schedule and from its page; does not return.

    One run at a time: what overlaps waits.
    """
    co_evolution.serve(
        name="rank-e",
        schedule=None if times is None else Cron(times.cron, timezone=times.timezone),
        parameters={
            "project": str(project),
            "jobs": jobs,
            "retries": retries,
            "wait": wait,
            "keep": keep,
            "remote": remote,
        },
        global_limit=1,
    )
