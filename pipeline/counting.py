"""How far `dvc repro` is: DVC's own line of each stage, with its number and the seconds so far."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.graph import GraphError, dependencies, load_graph

LOGGERS = ("dvc.stage", "dvc.stage.run", "dvc.stage.cache")
STARTS = ("Running stage '%s'", "Stage '%s' didn't change", "Stage '%s' is cached")


class Count(logging.Filter):
    """Writes [3/31, 74 s] in front of the line that says what becomes of a stage."""

    def __init__(self, total: int | None) -> None:
        """total: None where it is not known."""
        super().__init__()
        self.total, self.seen, self.began = total, set[object](), time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes."""
        if str(record.msg).startswith(STARTS) and isinstance(record.args, tuple):
            self.seen.add(record.args[0])
            total = "" if self.total is None else f"/{self.total}"
            record.msg = f"[{len(self.seen)}{total}, {time.monotonic() - self.began:.0f} s] {record.msg}"
        return True


def stages_of(project: Path, words: Sequence[str]) -> int | None:
    """How many stages `dvc repro` with these arguments looks at; None where they are not understood."""
    try:
        nodes = load_graph(project)
    except GraphError:
        return None  # DVC says what is wrong
    named = [word for word in words if not word.startswith("-") and "=" not in word]
    wanted = [node for node in nodes if not named or node.address in named or node.name in named]
    if {*named} - {name for node in wanted for name in (node.address, node.name)}:
        return None
    if {"-s", "--single-item"} & {*words}:
        return len(wanted)
    waits, found = dependencies(nodes), {node.address: node for node in wanted}
    while wanted:
        wanted = [other for other in waits[wanted.pop().address] if other.address not in found] + wanted
        found |= {node.address: node for node in wanted}
    return len(found)


@contextmanager
def counting(total: int | None) -> Iterator[None]:
    """While the block runs, DVC's lines of this process are numbered."""
    count = Count(total)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(count)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(count)
