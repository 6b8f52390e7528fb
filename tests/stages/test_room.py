"""A stage that would not find room on the disk does not begin."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rank_e.backbones.sizes import read_base
from rank_e.config import Params, parse
from rank_e.config.profiles import resolve
from rank_e.errors import RankEError
from stages.runtime.room import artifact_bytes, check_room
from stages.runtime.stage import ARGUMENTS, make_stage

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = YAML(typ="safe", pure=True).load(resolve(ROOT / "profiles/tiny.yaml"))
Usage = namedtuple("Usage", "total used free")
CELL = {"arm": "coevolved", "seed": 0, "round": 1}
SIZES, _ = read_base("shapes", ROOT / "assets/shapes")
POLICY = 16 * SIZES.policy


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    return parse(TINY)


def check(params: Params, name: str, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - free, free))
    stage = make_stage(name, params, **{key: CELL[key] for key in ARGUMENTS[name]})
    check_room(params, name, stage.arm, stage.key, Path(".rank-e/state"))


def test_an_artifact_and_the_state_beside_it_must_fit(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    check(params, "policy", 2 * POLICY, monkeypatch)
    with pytest.raises(RankEError, match=r"policy coevolved s0 r1: needs .* MB in .*, .* MB are free; free some"):
        check(params, "policy", 2 * POLICY - 1, monkeypatch)


def test_the_state_of_an_earlier_try_makes_room(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, size in (("policy-coevolved-s0-r1", 1000), ("policy-coevolved-s0-r11", 10**6)):
        folder = Path(f".rank-e/state/{key}-0123456789abcdef")
        folder.mkdir(parents=True)
        (folder / "state.safetensors").write_bytes(bytes(size))
    check(params, "policy", 2 * POLICY - 1000, monkeypatch)
    with pytest.raises(RankEError):
        check(params, "policy", 2 * POLICY - 1001, monkeypatch)


def test_rollouts_keep_no_state(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = params.arm("coevolved")
    size = params.prompts.per_round * arm.rollouts.group_size * SIZES.length * 8  # int32 and float32
    check(params, "rollouts", size, monkeypatch)
    with pytest.raises(RankEError):
        check(params, "rollouts", size - 1, monkeypatch)


def test_what_a_frozen_arm_hands_on_is_smaller(params: Params) -> None:
    frozen, trained = (artifact_bytes("decoder", SIZES, params, arm) for arm in ("frozen", "coevolved"))
    assert frozen == 8 * SIZES.decoder < trained


def test_small_artifacts_always_fit(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ranking", "reference", "factorial"):
        check(params, name, 0, monkeypatch)
