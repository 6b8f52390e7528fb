"""Who does which group of nodes when: in order, a few at a time, and never what waits for a failure."""

import threading

from pipeline.board import Board
from pipeline.graph import Chain, Node, NodeGroup

A, B = ("frozen", 0), ("coevolved", 0)


def group(name: str, chain: Chain | None, *waits: str) -> NodeGroup:
    arm, seed = chain or (None, None)
    return NodeGroup(name, (Node(name, name, arm, seed, 1, (), ()),), frozenset(waits))


GROUPS = [
    group("start", None),
    group("a1", A, "start"),
    group("b1", B, "start"),
    group("a2", A, "a1"),
    group("b2", B, "b1"),
    group("end", None, "a2", "b2"),
]


def run(board: Board, fails: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """Every chain's workers go through the board; the groups in the order they were taken, and most at a time."""
    taken: list[str] = []
    now, most, lock = 0, 0, threading.Lock()

    def work(chain: Chain | None) -> None:
        nonlocal now, most
        while (item := board.take(chain)) is not None:
            with lock:
                taken.append(item.name)
                now += 1
                most = max(most, now)
            threading.Event().wait(0.01)
            with lock:
                now -= 1
            board.end(item, item.name not in fails)

    threads = [threading.Thread(target=work, args=(chain,)) for chain in (None, A, B) for _ in range(board.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    return taken, most


def test_one_at_a_time_goes_by_the_order_given() -> None:
    board = Board(GROUPS, 1, lambda: False)
    assert run(board) == (["start", "a1", "b1", "a2", "b2", "end"], 1) and board.failed == []


def test_two_at_a_time_work_side_by_side() -> None:
    taken, most = run(Board(GROUPS, 2, lambda: False))
    assert most == 2 and taken[0] == "start" and taken[-1] == "end" and set(taken[1:3]) == {"a1", "b1"}


def test_what_waits_for_a_failure_is_left_out_and_the_rest_is_done() -> None:
    board = Board(GROUPS, 2, lambda: False)
    taken, _ = run(board, fails=("a1",))
    assert sorted(taken) == ["a1", "b1", "b2", "start"] and board.failed == ["a1"]
    assert [item.name for item in board.blocked] == ["a2", "end"]


def test_a_chain_that_nobody_works_for_fails_and_keeps_nobody_waiting() -> None:
    board = Board(GROUPS, 1, lambda: False)
    board.abandon(A)
    assert board.failed == ["a1"]  # the second waited for the first
    assert board.take(A) is None
    taken, _ = run(board)
    assert taken == ["start", "b1", "b2"]


def test_nothing_is_handed_out_while_the_run_is_stopping() -> None:
    assert Board(GROUPS, 1, lambda: True).take(None) is None
