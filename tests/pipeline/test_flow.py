"""The graph of dvc.yaml, DVC as a subprocess, and the flow, on a toy pipeline that computes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo

from pipeline.dvc import Repro, StageError, ending_children, record, stop_all, stopping, timings_path
from pipeline.graph import GraphError, Node, dependencies, load_graph, make_groups
from tests.helpers.fake_artifacts import write_params

ROOT = Path(__file__).parents[2]
ARMS = ("frozen", "coevolved")
TRAINED = ["start", "rollouts", "ranking", "policy", "decoder"]
WORK = """
import os, pathlib, sys, time
name, out, *deps = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
for dep in deps:
    assert pathlib.Path(dep).exists(), dep
print("hello from", name, flush=True)
if pathlib.Path("slow-" + name).exists():
    pathlib.Path("pid").write_text(str(os.getpid()))
    time.sleep(60)
time.sleep(0.3)
if pathlib.Path("fail-" + name).exists():
    pathlib.Path("fail-" + name).unlink()
    sys.exit("boom in " + name)
pathlib.Path(out).mkdir(parents=True)
(pathlib.Path(out) / "f.txt").write_text(name)
"""
PIPELINE = """
stages:
  reference: {cmd: python work.py reference out/reference, deps: [work.py], outs: [out/reference]}
  prompts:
    matrix: {seed: "${seeds}"}
    cmd: python work.py prompts out/prompts/s${item.seed} -- --seed ${item.seed}
    deps: [work.py]
    outs: ["out/prompts/s${item.seed}"]
  start:
    matrix: {arm: "${arms}", seed: "${seeds}"}
    cmd: python work.py start-${item.arm} out/${item.arm}/s${item.seed}/r0 -- --arm ${item.arm} --seed ${item.seed}
    deps: [work.py]
    outs: ["out/${item.arm}/s${item.seed}/r0"]
  policy:
    matrix: {arm: "${arms}", seed: "${seeds}", round: "${rounds}"}
    cmd: >-
      python work.py policy-${item.arm}-${item.round.id} out/${item.arm}/s${item.seed}/r${item.round.id}
      out/prompts/s${item.seed} out/${item.arm}/s${item.seed}/r${item.round.prev}
      -- --arm ${item.arm} --seed ${item.seed} --round ${item.round.id}
    deps:
      - work.py
      - out/prompts/s${item.seed}
      - out/${item.arm}/s${item.seed}/r${item.round.prev}
    outs: ["out/${item.arm}/s${item.seed}/r${item.round.id}"]
  table:
    cmd: python work.py table out/table out/${factorial.arms[1]}/s${seeds[0]}/r${factorial.round}
    deps: [work.py, "out/${factorial.arms[1]}/s${seeds[0]}/r${factorial.round}"]
    outs: [out/table: {persist: false}]
  report: {cmd: python work.py report report out, deps: [work.py, out], outs: [report]}
  old: {cmd: python work.py old out/old, outs: [out/old], frozen: true}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "work.py").write_text(WORK)
    (folder / "dvc.yaml").write_text(PIPELINE)
    write_params(folder, seeds=[0], rounds=2)
    for name in ("assets", "rank_e"):  # what the params name must be there
        (folder / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def toy(tmp_path: Path, template: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "toy", symlinks=True))


def nodes(folder: Path, *labels: str) -> list[Node]:
    found = {node.label: node for node in load_graph(folder)}
    return [found[label] for label in labels]


def lines_of(repro: Repro, node: Node) -> list[str]:
    lines: list[str] = []
    repro.run(node, lines.append)
    return lines


def test_the_graph_is_the_one_of_dvcs_index() -> None:
    main = ROOT / "dvc.yaml"
    index = {stage.name: stage for stage in Repo(str(ROOT)).index.stages if Path(stage.path) == main}
    graph = {node.address: node for node in load_graph(ROOT)}
    assert graph.keys() == index.keys()
    for address, stage in index.items():
        node = graph[address]
        for paths, items in ((node.deps, stage.deps), (node.outs, stage.outs)):
            found = {Path(item.fs_path).relative_to(ROOT) for item in items}
            assert set(map(Path, paths)) == found - {Path("params.yaml")}, address
        words = {"": node.name, "--arm ": node.arm, "--seed ": node.seed, "--round ": node.round}
        given = (f"{option}{value}" for option, value in words.items() if value is not None)
        assert stage.cmd == f"python -m stages {' '.join(given)}"


def test_a_node_has_the_coordinates_of_its_command_and_frozen_stages_are_left_out(toy: Path) -> None:
    graph = {node.address: node for node in load_graph(toy)}
    assert "old" not in graph and len(graph) == 10
    assert graph["policy@frozen-0-round1"] == Node(
        "policy@frozen-0-round1",
        "policy",
        "frozen",
        0,
        2,
        ("work.py", "out/prompts/s0", "out/frozen/s0/r1"),
        ("out/frozen/s0/r2",),
    )
    assert graph["table"].outs == ("out/table",) and graph["table"].arm is graph["table"].round is None


def test_arms_go_through_the_rounds_together_and_leaves_are_groups_of_their_own(toy: Path) -> None:
    groups = {group.name: group for group in make_groups(load_graph(toy))}
    assert list(groups)[2:] == [
        "table",
        "report",
        *(f"{arm} s0 r1" for arm in ARMS),
        *(f"policy {arm} s0 r2" for arm in ARMS),
    ]
    assert set(list(groups)[:2]) == {"reference", "prompts s0"}
    for arm in ARMS:
        first, second = groups[f"{arm} s0 r1"], groups[f"policy {arm} s0 r2"]
        assert [node.label for node in first.nodes] == [f"start {arm} s0", f"policy {arm} s0 r1"]
        assert first.waits == {"prompts s0"} and second.waits == {"prompts s0", first.name}
    assert groups["table"].waits == {"policy coevolved s0 r2"}
    assert groups["report"].waits == set(groups) - {"report"}


def test_the_projects_groups_respect_every_dependency() -> None:
    found = load_graph(ROOT)
    groups, waits = make_groups(found), dependencies(found)
    home = {node.address: group for group in groups for node in group.nodes}
    assert len(home) == len(found) == sum(len(group.nodes) for group in groups)
    for group in groups:
        for place, node in enumerate(group.nodes):
            inside = {other.address for other in group.nodes[:place]}
            for other in waits[node.address]:
                assert other.address in inside or home[other.address].name in group.waits
    names = [group.name for group in groups]
    round_1 = [name for name in names if name.endswith(" r1")]
    assert [node.name for node in groups[names.index("coevolved s0 r1")].nodes] == TRAINED
    assert round_1[6:] == [f"evaluation {name}" for name in round_1[:6]]  # all of a round's training before its judging
    assert names.index(round_1[-1]) < names.index("coevolved s0 r2")
    assert {"prompts s0 r1 and 2 more", "reference", "baseline", "factorial s0", "report"} <= set(names)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "${item.round.prev}\n    outs",
            "${item.round.nothing}\n    outs",
            "policy@frozen-0-round0.deps.*'item.round.nothing'; correct dvc.yaml",
        ),
        (
            "[work.py, out], outs",
            "[work.py, report], outs: [x]}\n  y: {cmd: a, deps: [x], outs",
            "each other",
        ),
        ("- out/prompts/s${item.seed}\n", "- out/frozen/s0/r2\n", "each other"),
        ("stages:", "stages: [", "dvc.yaml.* YAML .*; correct dvc.yaml"),
    ],
)
def test_a_wrong_graph_is_named(toy: Path, old: str, new: str, message: str) -> None:
    assert old in PIPELINE
    (toy / "dvc.yaml").write_text(PIPELINE.replace(old, new))
    with pytest.raises(GraphError, match=message):
        make_groups(load_graph(toy))


def test_arms_that_need_each_other_within_a_round_are_named() -> None:
    # No stage waits in a circle, but x's round waits for the middle of y's and the other way round.
    first = [Node(f"a@{arm}", "a", arm, 0, 1, (), (f"a/{arm}",)) for arm in "xy"]
    second = [Node(f"b@{arm}", "b", arm, 0, 1, ("a/x", "a/y"), (f"b/{arm}",)) for arm in "xy"]
    third = [Node(f"c@{arm}", "c", arm, 0, 2, (f"b/{arm}",), (f"c/{arm}",)) for arm in "xy"]
    with pytest.raises(GraphError, match="each other: x s0 r1, y s0 r1, c x s0 r2, c y s0 r2"):
        make_groups([*first, *second, *third])


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
        assert f"Task run '{stage.label}'" in output
    assert "boom in policy-frozen-1" in output and "Retry 1/1" in output
    assert "Where to look next" in output and (toy / "report" / "f.txt").exists()
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=toy, capture_output=True, text=True)
    assert [line for line in status.stdout.splitlines() if not line.startswith("\t")] == ["old:"]  # the frozen one


@pytest.mark.slow
def test_a_failure_stops_only_what_waits_for_it(toy: Path) -> None:
    (toy / "fail-policy-frozen-1").touch()
    command = command_line("run", "--no-track", "--retries", "0")
    done = subprocess.run(command, cwd=toy, env=environment(toy), capture_output=True, text=True)
    assert done.returncode == 1 and "these failed: frozen s0 r1;" in done.stdout + done.stderr
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


def test_timings_are_appended(tmp_path: Path) -> None:
    from pipeline.dvc import Timing

    for number in range(2):
        record(tmp_path, Timing(f"a@{number}", f"a {number}", "ran", 1.5, 20.0))
    rows = [json.loads(line) for line in timings_path(tmp_path).read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["a@0", "a@1"]
