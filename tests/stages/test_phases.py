"""Where a stage's seconds go."""

from collections.abc import Iterator

import pytest

from stages.runtime import phases
from stages.runtime.phases import Phases


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now[0])
    return now


def test_phases_add_up_to_the_whole(clock: list[float]) -> None:
    spent = Phases()

    def loop() -> Iterator[int]:
        with spent.phase("work"):
            yield from range(3)

    clock[0] += 5.0  # loading
    for _ in loop():
        clock[0] += 2.0
        with spent.phase("state"):
            clock[0] += 0.25
    with spent.phase("save"):
        clock[0] += 1.0
    with spent.phase("wait"):
        clock[0] += 3.0
    assert spent.table(clock[0]) == {"load": 5.0, "work": 6.0, "state": 0.75, "save": 1.0, "wait": 3.0}
    spent.begin()
    assert spent.table(0.0) == {"load": 0.0, "work": 0.0, "state": 0.0, "save": 0.0, "wait": 0.0}


def test_a_loop_that_fails_stops_its_clock(clock: list[float]) -> None:
    spent = Phases()
    with pytest.raises(ValueError, match="no"), spent.phase("work"):
        clock[0] += 1.0
        raise ValueError("no")
    clock[0] += 4.0
    assert spent.table(clock[0])["work"] == 1.0
