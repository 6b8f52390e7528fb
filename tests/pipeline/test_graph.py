"""The graph of dvc.yaml: DVC's stages with their coordinates, what waits for what, and the groups that run as one."""

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline.graph import GraphError, Node, dependencies, load_graph, make_groups
from tests.helpers.toy_pipeline import PIPELINE

ROOT = Path(__file__).parents[2]
ARMS = ("frozen", "coevolved")


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
        assert stage.cmd == f"exec sh stages/python -m stages {' '.join(given)}"


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
        *(f"start to policy {arm} s0 r1" for arm in ARMS),
        *(f"policy {arm} s0 r2" for arm in ARMS),
    ]
    assert set(list(groups)[:2]) == {"reference", "prompts s0"}
    for arm in ARMS:
        first, second = groups[f"start to policy {arm} s0 r1"], groups[f"policy {arm} s0 r2"]
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
    first = groups[names.index("start to ranking coevolved s0 r1")]
    assert [node.name for node in first.nodes] == ["start", "rollouts", "ranking"]
    # Policy and decoder of a round wait for its ranking, not for each other.
    policy, decoder = (groups[names.index(f"{name} coevolved s0 r1")] for name in ("policy", "decoder"))
    assert first.name in policy.waits & decoder.waits
    assert policy.name not in decoder.waits and decoder.name not in policy.waits
    # all of a round's training before its evaluations, and those before what reads them
    last = [name for name in names if name.endswith(" s0 r9")]
    stages = ("rollouts to ranking", "policy", "decoder", "evaluation", "factorial")
    assert last == [f"{stage} {arm} s0 r9" for stage in stages for arm in ARMS]
    assert {"prompts s0 r1 and 8 more", "reference", "baseline", "factorial coevolved s0 r9", "report"} <= set(names)


def test_a_run_of_one_arm_has_a_graph_of_its_own(tmp_path: Path) -> None:
    data = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    del data["arms"]["frozen"]
    data["factorial"]["arms"] = ["coevolved"]
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(data, file)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()
    graph = load_graph(tmp_path)
    assert {node.arm for node in graph} == {None, "coevolved"}
    last = next(node for node in graph if node.name == "factorial")
    assert last.arm == "coevolved" and not any("frozen" in dep for dep in last.deps)


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
    with pytest.raises(GraphError, match="each other: a to b x s0 r1, a to b y s0 r1, c x s0 r2, c y s0 r2"):
        make_groups([*first, *second, *third])
