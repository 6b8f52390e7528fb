"""DVC as a subprocess, and the flow, on a toy pipeline that computes nothing."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextvars import copy_context
from pathlib import Path

import psutil
import pytest
from prefect.exceptions import CancelledRun, FailedRun
from prefect.logging import get_logger
from prefect.server.api.server import SubprocessASGIServer
from prefect.states import Failed, State

from pipeline import serving
from pipeline.board import Board
from pipeline.dvc import RefusedError, Repro, StageError, ending_children, record, stop_all, stopping, timings_path
from pipeline.graph import Node, NodeGroup, load_graph
from pipeline.plan import Choice
from pipeline.run_page import Progress, title
from pipeline.running import activate_first
from rank_e.errors import RankEError
from stages.runtime.process import REFUSED
from tests.helpers.toy_pipeline import nodes

ROOT = Path(__file__).parents[2]


def lines_of(repro: Repro, node: Node) -> list[str]:
    lines: list[str] = []
    repro.run(node, lines.append)
    return lines


def test_one_process_runs_a_chain_stage_by_stage_and_measures_it(toy: Path) -> None:
    chain = nodes(toy, "prompts s0", "start frozen s0", "policy frozen s0 r1")
    usage = toy / ".rank-e" / "usage" / "prompts-s0.json"  # as a stage of this project writes it
    usage.parent.mkdir(parents=True)
    usage.write_text('{"seconds": 0.3, "peak_rss_mb": 123.4}')
    repro = Repro(toy, chain)
    for stage, name in zip(chain, ("prompts", "start-frozen", "policy-frozen-1"), strict=True):
        lines = lines_of(repro, stage)
        assert f"hello from {name}" in lines
        assert sum("hello from" in line for line in lines) == 1
    rows = [json.loads(line) for line in timings_path(toy).read_text().splitlines()]
    assert [row["label"] for row in rows] == [stage.label for stage in chain]
    assert all(row["outcome"] == "ran" and 0.3 < row["seconds"] < 10 for row in rows)
    assert [row["peak_rss_mb"] for row in rows] == [123.4, None, None]
    again = Repro(toy, chain)
    assert not any("hello" in line for stage in chain for line in lines_of(again, stage))
    rows = [json.loads(line) for line in timings_path(toy).read_text().splitlines()][3:]
    assert {row["outcome"] for row in rows} == {"unchanged"}


def test_a_failed_stage_says_why_and_is_tried_again_with_what_is_left(toy: Path) -> None:
    (toy / "fail-start-frozen").touch()
    chain = nodes(toy, "prompts s0", "start frozen s0", "policy frozen s0 r1")
    repro = Repro(toy, chain)
    lines_of(repro, chain[0])
    with pytest.raises(StageError, match=r"start frozen s0 failed[\s\S]*boom in start-frozen"):
        lines_of(repro, chain[1])
    assert "hello from start-frozen" in lines_of(repro, chain[1])
    assert "hello from policy-frozen-1" in lines_of(repro, chain[2])


def test_a_stage_that_refuses_is_told_from_one_that_may_be_tried_again(toy: Path) -> None:
    (toy / "refuse-prompts").touch()
    (toy / "fail-reference").touch()
    assert REFUSED == 65  # what the toy exits with
    ends = (("prompts s0", RefusedError, "no use in prompts"), ("reference", StageError, "boom in reference"))
    for label, kind, cause in ends:
        with pytest.raises(StageError) as error:
            lines_of(Repro(toy, nodes(toy, label)), *nodes(toy, label))
        assert type(error.value) is kind
        assert error.value.cause == cause


def test_where_dvc_itself_fails_its_own_words_are_the_cause(toy: Path) -> None:
    (toy / ".dvc/tmp").mkdir(exist_ok=True)
    (toy / ".dvc/tmp/rwlock").write_text('{"write": {"a')  # as a full disk left it while other processes work
    with pytest.raises(StageError) as error:
        lines_of(Repro(toy, nodes(toy, "prompts s0")), *nodes(toy, "prompts s0"))
    assert error.value.cause.startswith("ERROR: failed to reproduce 'prompts@0': Unable to read RWLock-file")


def test_an_arm_whose_inputs_failed_is_blocked_and_a_failure_is_said_by_its_cause() -> None:
    from pipeline.flow import RUN, Run, failure, work_through

    arms = [("frozen", 0), ("coevolved", 0)]
    first = NodeGroup("sft s0", (Node("sft", "sft", None, 0, None, (), ()),), frozenset())
    groups = [NodeGroup(arm, (Node(arm, arm, arm, 0, 1, (), ()),), frozenset({"sft s0"})) for arm, _ in arms]
    board = Board([first, *groups], 1, lambda: False)
    run = Run(Path(), board, Progress(Path(), [], 1), 0, set())

    def work() -> State[None]:
        RUN.set(run)
        return work_through(arms[0])

    assert board.take(None) == first
    board.end(first, False)
    state = copy_context().run(work)
    assert state.is_failed() and state.name == "Blocked"
    assert state.message == "not begun, since what they need failed: frozen"
    assert failure(run) == "these failed: sft s0; `rank-e run` goes on from there"
    run.causes |= {"sft@0": "sft: no base", "reference": "reference: no base", "prompts@0": "sft: no base"}
    assert failure(run).startswith("sft: no base, and 1 more causes above (these failed: sft s0;")


def test_what_no_other_try_would_mend_is_not_tried_again() -> None:
    from pipeline.flow import _again

    assert _again(None, None, Failed(data=StageError("killed")))
    assert not _again(None, None, Failed(data=RefusedError("params.yaml: a problem")))


def test_stopping_ends_the_stage_itself_and_nothing_starts_after(toy: Path) -> None:
    (toy / "slow-prompts").touch()
    chain = nodes(toy, "prompts s0", "start frozen s0")
    repro = Repro(toy, chain)
    errors: list[Exception] = []

    def work() -> None:
        try:
            lines_of(repro, chain[0])
        except StageError as error:
            errors.append(error)

    with ending_children():
        thread = threading.Thread(target=work)
        thread.start()
        pid = wait_for_pid(toy)
        stop_all()
        thread.join(20)
        assert stopping() and not thread.is_alive() and len(errors) == 1
        assert not alive(pid)
        with pytest.raises(StageError, match="was stopped"):
            lines_of(repro, chain[0])
    assert not stopping()


def wait_for_pid(folder: Path) -> int:
    deadline = time.monotonic() + 120  # Prefect's own start, on a busy machine too
    while time.monotonic() < deadline:
        if (folder / "pid").exists() and (text := (folder / "pid").read_text()):
            return int(text)
        time.sleep(0.05)
    raise AssertionError("the stage did not start")


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def environment(folder: Path) -> dict[str, str]:
    """Its own Prefect home, so that nobody's settings or database are touched."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / ".prefect")}


@pytest.mark.slow
def test_the_command_runs_everything_by_name_and_tries_again(toy: Path) -> None:
    (toy / "fail-policy-frozen-1").touch()
    done = subprocess.run(
        command_line("run", "--no-track"), cwd=toy, env=environment(toy), capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    for stage in load_graph(toy):
        assert output.count(f"Task run '{title(stage)}' - Finished in state") == 1
    assert "boom in policy-frozen-1" in output and "Retry 1/1" in output
    assert "Where to look next" in output and (toy / "report" / "f.txt").exists()
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=toy, capture_output=True, text=True)
    assert [line for line in status.stdout.splitlines() if not line.startswith("\t")] == ["old:"]  # the frozen one


@pytest.mark.slow
def test_a_failure_stops_only_what_waits_for_it(toy: Path) -> None:
    (toy / "fail-policy-frozen-1").touch()
    command = command_line("run", "--no-track", "--retries", "0")
    done = subprocess.run(command, cwd=toy, env=environment(toy), capture_output=True, text=True)
    said = "boom in policy-frozen-1 (these failed: start to policy frozen s0 r1; `rank-e run` goes on from there)"
    assert done.returncode == 1 and [line for line in done.stderr.splitlines() if line.startswith("rank-e: ")] == [
        f"rank-e: {said}"
    ]
    assert "Traceback" not in done.stdout + done.stderr
    assert (toy / "out/coevolved/s0/r2/f.txt").exists() and (toy / "out/table/f.txt").exists()
    assert not (toy / "out/frozen/s0/r2").exists() and not (toy / "report").exists()


@pytest.mark.slow
def test_sigterm_leaves_no_process_behind(toy: Path) -> None:
    (toy / "slow-policy-coevolved-1").touch()
    process = subprocess.Popen(
        command_line("run", "--no-track"),
        cwd=toy,
        env=environment(toy),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pid = wait_for_pid(toy)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert not alive(pid)


def test_a_server_that_does_not_start_is_one_line_and_none_is_left(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def start(self: SubprocessASGIServer) -> None:
        raise RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")

    monkeypatch.setattr(SubprocessASGIServer, "start", start)
    monkeypatch.setattr(SubprocessASGIServer, "stop", lambda self: ended.append(True))
    monkeypatch.setattr(serving, "co_evolution", None)  # it is never begun
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(RankEError, match=r"^Prefect's temporary server: Timed out .* server; run again ") as caught:
        serving.run(toy, 1, 0, Choice())
    assert len(str(caught.value).splitlines()) == 1 and ended == [True]


def test_only_what_nobody_foresaw_is_logged_with_a_traceback() -> None:
    import pipeline.flow  # noqa: F401

    def logged(name: str, error: Exception) -> tuple[bool, bool]:
        """Whether it is logged at all, and with a traceback."""
        record = logging.LogRecord(name, logging.ERROR, "", 0, "%s", ("",), (type(error), error, None))
        return bool(get_logger(name).filter(record)), record.exc_info is not None

    for name in ("task_runs", "flow_runs", "engine"):
        assert logged(name, StageError("damaged")) == (True, False)
        assert logged(name, ValueError("a fault")) == (True, True)
        for error in (FailedRun("the state's message"), CancelledRun("stopped")):
            assert not logged(name, error)[0]


def test_timings_are_appended(tmp_path: Path) -> None:
    from pipeline.dvc import Timing

    for number in range(2):
        record(tmp_path, Timing(f"a@{number}", f"a {number}", "ran", 1.5, 20.0))
    rows = [json.loads(line) for line in timings_path(tmp_path).read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["a@0", "a@1"]


def test_bare_commands_are_named_with_what_makes_them_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a project/.venv/bin"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a project")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(folder))
    for name in ("MAKELEVEL", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    assert activate_first() is None  # no environment of Python's to activate
    (folder / "activate").touch()
    assert activate_first() == ". .venv/bin/activate"
    (folder / "rank-e").write_text("#!/bin/sh\n")
    (folder / "rank-e").chmod(0o755)
    assert activate_first() is None  # it is on the PATH already
    monkeypatch.setenv("MAKELEVEL", "1")  # which make does for its own commands alone
    assert activate_first() == ". .venv/bin/activate"
    monkeypatch.setattr(sys, "prefix", str(folder.parent))
    monkeypatch.setenv("VIRTUAL_ENV", str(folder.parent))
    assert activate_first() is None


def test_prefect_reads_its_settings_whatever_comes_first() -> None:
    words = "import pipeline.serving; from prefect.settings import get_current_settings as get; s = get().server"
    command = [sys.executable, "-c", f"{words}; print(s.ephemeral.startup_timeout_seconds, s.analytics_enabled)"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "DO_NOT_TRACK"))}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["120", "False"]
