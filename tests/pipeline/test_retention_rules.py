"""Which rounds stay and which files go: by the words of `--keep`, by what is done, by what is shared."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from pipeline.graph import Node
from pipeline.retention import (
    File,
    Keep,
    best_round,
    cost,
    files_to_drop,
    kept_rounds,
    read_dropped,
    read_keep,
    rounds_done,
    spans,
)
from rank_e.config import Params
from rank_e.config.profiles import load_profile
from rank_e.errors import RankEError
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.manifests import REMOVED, read_removed, removed_from

ROOT = Path(__file__).parents[2]
ARMS = ("frozen", "coevolved")


@pytest.fixture(scope="module")
def params() -> Params:
    """Five rounds of two arms, of which the last is evaluated."""
    params = load_profile(ROOT / "profiles/shapes.yaml")
    return params.model_copy(update={"rounds": params.rounds[:5], "evaluated": [5]})


def node(name: str, arm: str | None, number: int) -> Node:
    folder = f"artifacts/{arm}/s0/r{number}/{name}" if arm else f"artifacts/{name}/s0/r{number}"
    return Node(f"{name}@{arm}-{number}", name, arm, 0, number, (), (folder,))


NODES = [
    *(node("prompts", None, number) for number in range(1, 6)),
    *(node(name, arm, number) for name in ("rollouts", "policy", "decoder") for arm in ARMS for number in range(1, 6)),
]
WEIGHTS = ("optimizer", "online", "ema")


def content() -> dict[str, dict[str, tuple[str, int]]]:
    """Files of one byte, each with a hash of its own."""
    names = {"prompts": ["text"], "rollouts": ["rollouts"], "policy": WEIGHTS, "decoder": WEIGHTS}
    found = {}
    for each in NODES:
        for folder in each.outs:
            own = {f"{name}.safetensors": (f"{folder}/{name}", 1) for name in names[each.name]}
            found[folder] = own | {"manifest.json": (f"{folder}/manifest", 1)}
    return found


def dropped(params: Params, kinds: tuple[str, ...], stale: Collection[str] = (), every: int | None = None) -> set[str]:
    kept = kept_rounds(params, Keep(every), NODES, stale)
    return {f"{file.folder}/{file.name}" for file in files_to_drop(params, NODES, stale, kept, kinds, content())}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last", Keep()),
        ("last,best,every=10", Keep(10, "reward")),
        ("every=3, best=fd, last", Keep(3, "fd")),
    ],
)
def test_the_words_of_keep(text: str, expected: Keep) -> None:
    assert read_keep(text) == expected


@pytest.mark.parametrize("text", ["", "best", "last,every=0", "last,every", "last,best=", "last,10", "last,every=-1"])
def test_other_words_are_refused_by_name(text: str) -> None:
    with pytest.raises(RankEError, match=f"^--keep {text}: .*last"):
        read_keep(text)
    with pytest.raises(RankEError, match=r"^--drop ema,weights: weights is none of optimizer, online, ema, rollouts"):
        read_dropped("ema,weights")


def test_done_is_the_unbroken_line_of_rounds(params: Params) -> None:
    assert rounds_done(NODES, set()) == {("frozen", 0): 5, ("coevolved", 0): 5}
    stale = {"policy@frozen-4", "decoder@coevolved-1", "rollouts@coevolved-5"}
    assert rounds_done(NODES, stale) == {("frozen", 0): 3, ("coevolved", 0): 0}
    kept = kept_rounds(params, Keep(), NODES, stale)
    assert kept == {("frozen", 0): {0, 3, 4, 5}, ("coevolved", 0): {0, 1, 2, 3, 4, 5}}
    assert kept_rounds(params, Keep(every=2), NODES, set())["frozen", 0] == {0, 2, 4, 5}
    judged = [*NODES, node("evaluation", "frozen", 2)]
    assert kept_rounds(params, Keep(), judged, {"evaluation@frozen-2"})["frozen", 0] == {0, 2, 5}


def test_weights_of_the_rounds_between_go_and_what_others_read_stays(params: Params) -> None:
    whole = {
        f"artifacts/{arm}/s0/r{n}/{k}/{w}.safetensors"
        for arm in ARMS
        for n in (1, 3)
        for k in ("policy", "decoder")
        for w in WEIGHTS
    }
    assert dropped(params, WEIGHTS, every=2) == whole
    assert dropped(params, ("online",), every=2) == {name for name in whole if "online" in name}
    judged = params.model_copy(update={"evaluated": [3, 5]})
    assert dropped(judged, WEIGHTS, every=2) == {n for n in whole if "r3" not in n or "ema" not in n}
    # Round 1's rollouts are what later ones are compared with; prompts are of both arms.
    assert dropped(params, ("rollouts", "prompts"), {"decoder@frozen-3"}) == {
        "artifacts/prompts/s0/r1/text.safetensors",
        *(f"artifacts/coevolved/s0/r{number}/rollouts/rollouts.safetensors" for number in (2, 3, 4)),
    }
    assert dropped(params, WEIGHTS, {each.address for each in NODES}) == set()


def test_what_a_kept_artifact_shares_stays(params: Params) -> None:
    held = content()
    for arm in ARMS:  # handed on from round to round, or by one of two rounds that go
        for number in range(1, 6):
            held[f"artifacts/{arm}/s0/r{number}/decoder"]["ema.safetensors"] = (arm, 1)
    for number in (2, 3):
        held[f"artifacts/frozen/s0/r{number}/policy"]["ema.safetensors"] = ("twins", 1)
    found = files_to_drop(params, NODES, (), kept_rounds(params, Keep(), NODES, ()), ("ema",), held)
    assert {file.md5 for file in found if file.node.name == "decoder"} == set()
    assert [file.node.round for file in found if file.md5 == "twins"] == [2, 3]


def test_the_best_round_is_by_the_metrics_own_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judged = [node("evaluation", "frozen", number) for number in (1, 2, 3)]
    for each, reward, distance in zip(judged, (1.0, 3.0, 3.0), (7.0, 8.0, 6.0), strict=True):
        with ArtifactWriter(each.outs[0], "evaluation", seed=0, deterministic=True) as out:
            out.json("metrics", {"reward": {"value": reward}, "fd": {"value": distance}, "entropy": {"value": 1.0}})
            ways = {"reward": "higher", "fd": "lower", "entropy": "nearer"}
            out.json("descriptions", [{"key": key, "better": way} for key, way in ways.items()])
    assert best_round(judged, "reward") == {2} and best_round(judged, "fd") == {3} and best_round([], "fd") == set()
    for wrong in ("entropy", "speed"):
        with pytest.raises(RankEError, match=f"^--keep best={wrong}: .*there are reward, fd$"):
            best_round(judged, wrong)


def test_a_removed_state_costs_the_rounds_from_the_kept_one_on(tmp_path: Path) -> None:
    usage = tmp_path / ".rank-e/usage"
    usage.mkdir(parents=True)
    for number, seconds in ((1, 10), (2, 20), (3, 40), (5, 60)):
        (usage / f"policy-frozen-s0-r{number}.json").write_text(json.dumps({"seconds": seconds}))
    given: Any = [File("ema", each, each.outs[0], "ema", 1, "x") for each in NODES if each.chain == ("frozen", 0)]
    files = [file for file in given if file.node.name == "policy" and file.node.round != 4]
    assert cost(tmp_path, files).startswith(
        "asked for again, policy frozen s0 r3 is 3 rounds' work"
    ) and "70 s" in cost(tmp_path, files)
    assert "needs training" in cost(tmp_path, [file for file in given if file.node.name == "rollouts"])
    assert spans([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7-8"


@pytest.mark.parametrize(
    "said",
    [
        "", "[]", "{}", "null", '{"files": {}, "trees": {}}', '{"files": [], "trees": []}',
        '{"files": {"../../x.safetensors": "' + "0" * 32 + '"}, "trees": []}',
        '{"files": {"ema.safetensors": "../../x"}, "trees": []}', '{"files": {}, "trees": ["aa/../x"]}',
    ],
)  # fmt: skip
def test_a_list_of_removed_files_that_is_damaged_names_none(tmp_path: Path, said: str) -> None:
    """What it names is removed: from the artifact, DVC's cache and a remote."""
    (tmp_path / REMOVED).write_text(said)
    with pytest.raises(ValueError, match=r"\w"):
        read_removed(tmp_path / REMOVED)
    whole = {"files": {"ema.safetensors": "0" * 32}, "trees": ["1" * 32 + ".dir"]}
    (tmp_path / REMOVED).write_text(json.dumps(whole))
    assert read_removed(tmp_path / REMOVED) == whole and removed_from(tmp_path) == {"ema.safetensors"}


def test_a_number_of_rounds_that_python_cannot_read_is_refused() -> None:
    with pytest.raises(RankEError, match="is none of last, best"):
        read_keep("last,every=" + "9" * 5000)


def test_a_damaged_record_of_seconds_costs_nothing(tmp_path: Path) -> None:
    given: Any = [File("ema", each, each.outs[0], "ema", 1, "x") for each in NODES if each.chain == ("frozen", 0)]
    path = tmp_path / ".rank-e/usage/policy-frozen-s0-r1.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"secon')
    assert "0 s" in cost(tmp_path, given)
