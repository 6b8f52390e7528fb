"""What a run has to do: DVC's word for what is as it should be, and the part that was chosen."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli, running
from pipeline.graph import Node, dependencies, load_graph
from pipeline.plan import Choice, ChoiceError, Plan, check_choice, make_plan, select, write_part
from rank_e.config import load
from tests.helpers.fake_artifacts import write_params, write_project

ROOT = Path(__file__).parents[2]
NODES = load_graph(ROOT)
WAITS = dependencies(NODES)


def names(wanted: set[str]) -> set[str]:
    return {node.label for node in NODES if node.address in wanted}


def addresses(arm: str | None) -> set[str]:
    return {node.address for node in NODES if node.arm == arm}


def test_without_a_choice_everything_is_wanted() -> None:
    assert select(NODES, Choice(), ()) == ({node.address for node in NODES}, [])


def test_an_arm_alone_comes_with_what_all_share_and_nothing_of_another_arm() -> None:
    wanted, left_out = select(NODES, Choice(arms=("coevolved",)), ())
    assert [node.label for node in left_out] == ["factorial coevolved s0 r9"]  # it reads the control's tokens
    report = {"report"}
    assert wanted == (addresses("coevolved") | addresses(None)) - {node.address for node in left_out} - report
    for node in NODES:
        if node.address in wanted:
            assert {other.address for other in WAITS[node.address]} <= wanted
    # The control needs no other arm.
    assert select(NODES, Choice(arms=("frozen",)), ()) == ((addresses("frozen") | addresses(None)) - report, [])


def test_the_factorial_follows_an_arm_that_is_there_or_is_asked_for_by_name() -> None:
    chosen = Choice(arms=("coevolved",))
    wanted, left_out = select(NODES, chosen, addresses("frozen"))
    assert not left_out and "factorial coevolved s0 r9" in names(wanted)
    named, left_out = select(NODES, Choice(arms=("coevolved",), only=("factorial",)), ())
    assert not left_out and {"factorial coevolved s0 r9", "evaluation frozen s0 r9"} <= names(named)
    assert "factorial frozen s0 r9" not in names(named)


def test_only_a_stage_brings_what_it_needs_and_no_more() -> None:
    wanted, _ = select(NODES, Choice(arms=("frozen",), only=("ranking",), rounds=1), ())
    assert names(wanted) == {
        "code",
        "sft s0",
        "prompts s0 r1",
        "start frozen s0",
        "rollouts frozen s0 r1",
        "ranking frozen s0 r1",
    }
    assert select(NODES, Choice(only=("report",)), ()) == (set(), [])


def test_a_seed_or_the_first_rounds_alone(toy: Path) -> None:
    write_params(toy, seeds=[3, 4], rounds=2)
    nodes = load_graph(toy)
    labels = {node.address: node.label for node in nodes}
    wanted, left_out = select(nodes, Choice(seeds=(4,), rounds=1), ())
    found = {labels[address] for address in wanted}
    assert found == {
        "reference",
        "prompts s4",
        *(f"{name} s4{end}" for name, end in (("start frozen", ""), ("start coevolved", ""))),
        "policy frozen s4 r1",
        "policy coevolved s4 r1",
    }
    assert [node.label for node in left_out] == ["table"]  # of seed 3


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(arms=("warm",)), "arm warm: the run of params.yaml has coevolved, frozen"),
        (Choice(seeds=(7,)), "seed 7: the run of params.yaml has 0"),
        (Choice(rounds=99), "rounds 99: the run of params.yaml has "),
        (Choice(only=("polcy",)), "only polcy: the run of params.yaml has baseline, code, decoder, "),
    ],
)
def test_what_the_run_does_not_have_is_named(choice: Choice, message: str) -> None:
    with pytest.raises(ChoiceError) as error:
        select(NODES, choice, ())
    assert str(error.value).startswith(message)
    with pytest.raises(ChoiceError, match="^" + re.escape(message.partition(" has ")[0])):
        check_choice(ROOT, choice, load(ROOT / "params.yaml"))


def test_a_wrong_choice_is_said_before_a_run_waits(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy)
    monkeypatch.setattr(running, "working", lambda *_: pytest.fail("it waits for whoever works here"))
    with pytest.raises(SystemExit, match=r"^rank-e: arm warm: the run of params\.yaml has coevolved, frozen$"):
        cli.main(["run", "--arm", "warm", "--wait", "3600"])


def test_what_dvc_finds_unchanged_is_kept_with_all_that_it_comes_from(toy: Path) -> None:
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--quiet"]
    subprocess.run([*command, "reference", "prompts@0", "start@frozen-0"], cwd=toy, check=True)
    plan = make_plan(toy, Choice())
    assert {node.label for node in plan.kept} == {"reference", "prompts s0", "start frozen s0"}
    assert len(plan.nodes) == 7 and not plan.stale and not plan.report
    assert plan.said == ["7 stages to do, 3 are as they should be"]
    groups = {group.name: group for group in plan.groups}
    first = groups["start to policy frozen s0 r1"]
    assert [node.label for node in first.nodes] == ["policy frozen s0 r1"]
    assert first.waits == set()  # the prompts are there
    assert groups["policy frozen s0 r2"].waits == {first.name}
    # An artifact that went away takes along what came from it, of that arm alone.
    (toy / "out/frozen/s0/r0/f.txt").unlink()
    part = make_plan(toy, Choice(arms=("coevolved",)))
    assert {node.label for node in part.kept} == {"reference", "prompts s0"} and part.report
    assert {node.arm for node in part.nodes} == {"coevolved", None}
    assert {node.label for node in part.stale} == {"start frozen s0", "policy frozen s0 r1", "policy frozen s0 r2"}
    assert "out/frozen/s0/r2" in part.stale_places
    assert part.said[1] == ("not chosen and not up to date: start frozen s0, policy frozen s0 r1, policy frozen s0 r2")
    assert write_part(toy, part).startswith("no report yet: ")


def test_the_report_of_a_part_leaves_out_what_is_not_up_to_date(tmp_path: Path) -> None:
    write_project(tmp_path, seeds=[0], rounds=1)
    stale = Node("x", "evaluation", "frozen", 0, 1, (), ("artifacts/frozen/s0/r1/evaluation",))
    assert write_part(tmp_path, Plan([], [], [], [stale], True)) == "report of what is there: " + str(
        tmp_path / "report/index.html"
    )
    text = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "<b>A part of the run:</b> coevolved; s0; rounds 1 to 1." in text
    assert "artifacts/frozen/s0/r1/evaluation" in text
