"""What Prefect is told that it would not find out: that a run was stopped, and which errors need no traceback."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun, FailedRun
from prefect.logging import get_logger
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from pipeline.guardian import FAREWELLS
from rank_e.errors import RankEError


class WordsAlone(logging.Filter):
    """Errors of ours are logged without a traceback: their words name the thing, the place and the fix.

    A state that the flow has returned stands in the log already when a worker's process ends by raising it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record tells anything new."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RankEError):
            record.exc_info = None
        return not isinstance(error, (FailedRun, CancelledRun))


for name in ("task_runs", "flow_runs", "engine"):
    get_logger(name).addFilter(WordsAlone())

STOPPED = "stopped by a signal: what is done is kept"


@contextmanager
def telling(farewell: Callable[[], None]) -> Iterator[None]:
    """A signal that ends this process while the block runs has a Prefect server told so, where there is one."""
    if not PREFECT_API_URL.value():
        yield
        return
    FAREWELLS.append(farewell)
    try:
        yield
    finally:
        FAREWELLS.remove(farewell)


def say_cancelled(flow_run_id: str) -> None:
    """Tell the Prefect server at PREFECT_API_URL, which would show this flow run as running for ever."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Cancelled(message=STOPPED), force=True)


def say_task_cancelled(task_run_id: str) -> None:
    """The same of a task run."""
    with get_client(sync_client=True) as client:
        client.set_task_run_state(UUID(task_run_id), Cancelled(message=STOPPED), force=True)
