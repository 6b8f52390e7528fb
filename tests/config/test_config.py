"""params.yaml: a wrong file is reported whole, line by line."""

import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rank_e.config import ConfigError, load, parse
from rank_e.config.profiles import resolve

ROOT = Path(__file__).parents[2]
SHAPES: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "profiles/shapes.yaml").read_text())


def problems(change: Callable[[dict[str, Any]], object]) -> list[str]:
    """The lines of the error after a change of the shapes profile."""
    data = deepcopy(SHAPES)
    change(data)
    with pytest.raises(ConfigError) as error:
        parse(data)
    return str(error.value).splitlines()


def test_arms_override_only_what_they_name() -> None:
    data = deepcopy(SHAPES)
    data["arms"]["cold"] = {
        "rollouts": {},
        "ranking": {"temperature": {"end": 0.5}},
        "policy": {},
        "decoder": {},
    }
    params = parse(data)
    temperature = params.arm("cold").ranking.temperature
    assert temperature.end == 0.5
    assert temperature.start == params.ranking.temperature.start
    assert params.arm("cold").policy == params.policy
    with pytest.raises(ConfigError, match=r"'warm' is not in params\.yaml: it has frozen, coevolved, cold"):
        params.arm("warm")


def test_a_run_of_one_arm_is_its_own_control() -> None:
    data = deepcopy(SHAPES)
    del data["arms"]["frozen"]
    data["factorial"]["arms"] = ["coevolved"]
    params = parse(data)
    assert list(params.arms) == params.factorial.arms == ["coevolved"]
    assert problems(lambda d: d["factorial"].update(arms=[]))


def test_every_problem_is_reported_at_once_with_key_value_and_range() -> None:
    def change(data: dict[str, Any]) -> None:
        data["policy"]["learning_rate"] = -1
        data["policy"]["epochs"] = 2.0
        data["policy"]["reference"] = "old"
        data["runtime"]["device"] = "tpu"
        data["arms"]["frozen"]["decoder"]["steps"] = True
        data["arms"]["frozen"]["decoder"]["stepz"] = 3
        data["decoder"]["lecam"] = float("nan")
        del data["prompts"]["per_round"]

    lines = problems(change)
    assert lines[0] == 'params.yaml: runtime.device = "tpu": must be text that matches ^(cpu|cuda(:\\d+)?)$'
    assert "params.yaml: policy.learning_rate = -1: must be a number in (0, 1]" in lines
    assert "params.yaml: policy.epochs = 2.0: must be a whole number in [1, 10000000]" in lines
    assert 'params.yaml: policy.reference = "old": must be base or ema' in lines
    assert "params.yaml: prompts.per_round is missing: must be a whole number in [1, 10000000]" in lines
    assert "params.yaml: decoder.lecam = NaN: must be a number in [0, 1000]" in lines
    assert "params.yaml: arms.frozen.decoder.steps = true: must be a whole number in [1, 10000000]" in lines
    assert any(line.startswith("params.yaml: arms.frozen.decoder.stepz = 3: unknown key") for line in lines)
    assert len(lines) == 8


def test_problems_of_a_section_of_several_kinds_are_named_as_the_file_has_them() -> None:
    def change(data: dict[str, Any]) -> None:
        data["decoder"]["discriminator"] = {"kind": "patchgan", "channels": 0}
        data["data"]["training"]["kind"] = "tar"
        data["data"]["held_out"] = {"folder": "x", "split": "train"}
        data["evaluation"]["benchmarks"] = {"parti": {"kind": "hpsv2", "prompts": "p", "per_style": 1, "fil": "x"}}

    found = problems(change)
    assert "params.yaml: decoder.discriminator.channels = 0: must be a whole number in [1, 10000000]" in found
    assert "params.yaml: decoder.discriminator.layers is missing: must be a whole number in [1, 8]" in found
    # pydantic checks an arm's own copy again
    lines = [line for line in found if "arms." not in line]
    assert any(
        line.startswith("params.yaml: data.training = ")
        and line.endswith("with kind: webdataset or folder or coco or package.module:factory")
        for line in lines
    )
    assert any(line.startswith("params.yaml: data.held_out = ") for line in lines)
    assert any(line.startswith("params.yaml: evaluation.benchmarks.parti.fil = ") for line in lines)
    assert "params.yaml: evaluation.benchmarks.parti.file is missing: must be text that is not empty" in lines


def test_a_dataset_of_ones_own_needs_a_folder_and_may_have_any_key() -> None:
    data = deepcopy(SHAPES)
    data["data"]["held_out"] = {"kind": "mine:dataset", "folder": "x", "shards": [1, 2]}
    assert parse(data).data.held_out.model_dump() == data["data"]["held_out"]
    lines = problems(lambda d: d["data"].update(held_out={"kind": "mine:dataset", "folder": ""}))
    assert lines == ['params.yaml: data.held_out.folder = "": must be text that is not empty']


def test_a_key_that_moved_is_answered_by_its_new_place() -> None:
    lines = problems(lambda d: d["policy"].update(minimum_std=1e-4))
    assert lines == ["params.yaml: policy.minimum_std is now ranking.minimum_std"]


def test_each_rule_needs_its_own_weights_and_only_those() -> None:
    lines = problems(lambda d: d["decoder"].update(adversarial_rule="adaptive", lambda_gan=1.0))
    assert lines == ["params.yaml: decoder.lambda_reward = null: must be a number under adversarial_rule: adaptive"]
    data = deepcopy(SHAPES)
    data["decoder"] |= {"adversarial_rule": "adaptive", "lambda_gan": 1.0, "lambda_reward": 0.0, "reward_ratio": None}
    assert parse(data).decoder.rewarded is False
    data["decoder"]["lambda_reward"] = 0.1
    assert parse(data).decoder.rewarded is True
    data = deepcopy(SHAPES)
    data["decoder"] |= {"reward_ratio": 0.5, "lambda_reward": 0.0}
    assert parse(data).decoder.rewarded is True


def test_a_file_of_schema_1_is_answered_by_every_new_name_at_once() -> None:
    def change(data: dict[str, Any]) -> None:
        data["schema"] = 1
        data["sft"]["pictures"] = data["sft"].pop("images")
        for key in ("", "reference_", "real_"):
            data["evaluation"][f"{key}pictures"] = data["evaluation"].pop(f"{key}images")
        for name in ("training", "held_out"):
            data["data"][name]["kind"] = "shapes"
        data["policy"]["minimum_std"] = data["ranking"].pop("minimum_std")
        data["arms"]["frozen"]["policy"]["advantage_clamp"] = 3.0
        data["ranking"]["rewards"]["clip"]["kind"] = "rank_e.shapes.judges:clip_reward"
        data["decoder"]["perceptual"]["kind"] = "rank_e.shapes.judges:perceptual"
        names = {"fd": "last_features", "fd_mid": "middle_features", "fd_patch": "patch_places"}
        for name, kind in names.items():
            data["evaluation"]["distances"][name]["kind"] = f"rank_e.shapes.judges:{kind}"
        for name, kind in {"clip": "clip_score", "accuracy": "checker"}.items():
            data["evaluation"]["scores"][name]["kind"] = f"rank_e.shapes.judges:{kind}"

    lines = [line.removeprefix("params.yaml: ") for line in problems(change)]
    assert "sft.pictures is now sft.images" in lines
    assert "evaluation.reference_pictures is now evaluation.reference_images" in lines
    assert "data.training.kind: shapes is now rank_e.shapes.dataset:open_dataset" in lines
    scores = "evaluation.scores.accuracy.kind: rank_e.shapes.judges:checker is now rank_e.shapes.metrics:checker"
    assert scores in lines
    assert "policy.minimum_std is now ranking.minimum_std" in lines
    assert "arms.frozen.policy.advantage_clamp is now arms.frozen.ranking.advantage_clamp" in lines
    assert lines[-1] == "schema = 1: this version reads schema: 2; write the new names, then schema: 2"
    assert len(lines) == 4 + 2 + 2 + 2 + 5 + 1
    # With every name replaced as the lines say, the file is this version's.
    assert all(new in str(SHAPES) for new in (line.partition(" is now ")[2].rpartition(".")[2] for line in lines[:-1]))


def test_a_file_from_before_a_key_is_told_what_to_write() -> None:
    lines = problems(lambda data: data["runtime"].pop("deterministic"))
    assert lines == ["params.yaml: runtime.deterministic is missing: must be true or false"]


def test_a_batch_fits_itself_only_where_bytes_need_not_be_the_same() -> None:
    data = deepcopy(SHAPES)
    data["rollouts"]["batch_size"] = "auto"
    with pytest.raises(
        ConfigError, match=r'rollouts\.batch_size = "auto": must be a number under runtime.deterministic'
    ):
        parse(data)
    data["runtime"]["deterministic"] = False
    assert parse(data).arm("frozen").rollouts.batch_size == "auto"
    (line,) = problems(lambda data: data["rollouts"].update(batch_size="all"))
    assert line == 'params.yaml: rollouts.batch_size = "all": must be a whole number in [1, 10000000], or auto'


@pytest.mark.parametrize("section", ["sft", "policy", "decoder", "ranking", "rollouts", "evaluation", "runtime"])
def test_no_key_has_a_default(section: str) -> None:
    for key in SHAPES[section]:
        lines = problems(partial(lambda removed, data: data[section].pop(removed), key))
        assert len(lines) == 1 and f"{section}.{key} is missing" in lines[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d["ranking"].update(rewards={}), "ranking.rewards = {}: must be a mapping of at least 1 by name"),
        (lambda d: d["ranking"].update(keep=9), "ranking.keep = 9: must be at most rollouts.group_size = 8"),
        (
            lambda d: [reward.update(weight=0.0) for reward in d["ranking"]["rewards"].values()],
            'ranking.rewards.*.weight = {"clip": 0.0}: must be another number than 0 for one',
        ),
        (lambda d: d["rounds"][1].update(id=5), "rounds.1.id = 5: must be 2"),
        (lambda d: d["rounds"][2].update(prev=1), "rounds.2.prev = 1: must be id - 1 = 2"),
        (lambda d: d.update(evaluated=[1, 1, 5]), "evaluated = [1, 1, 5]: must be ids of rounds in rising order"),
        (lambda d: d.update(evaluated=[1, 2]), "evaluated = [1, 2]: must be a list that ends with round 9"),
        (lambda d: d["seeds"].append(0), "seeds = [0, 0]: must be different from each other"),
        (lambda d: d["factorial"].update(round=2), "factorial.round = 2: must be the last round, 9"),
        (lambda d: d["factorial"]["arms"].__setitem__(1, "x"), 'factorial.arms.1 = "x": must be one of'),
        (
            lambda d: d["decoder"].update(microbatch_size=21),
            "decoder.microbatch_size = 21: must be at most the larger of decoder.rollouts_per_step and reals_per_step",
        ),
        (lambda d: d["sft"].update(batch_size=32), "sft.microbatch_size = 64: must be at most sft.batch_size = 32"),
        (lambda d: d["sft"].update(caption_dropout=1.0), "sft.caption_dropout = 1.0: must be a number in [0, 1)"),
        (lambda d: d["arms"].update(sft=d["arms"]["frozen"]), "arms.sft: the name is taken"),
        (lambda d: d["arms"].update(base=d["arms"]["frozen"]), "arms.base: the name is taken"),
        (lambda d: d["evaluation"].update(images=257), "evaluation.images = 257: must be at most"),
        (lambda d: d.update(schema=3), "schema = 3: must be 2"),
        (lambda d: d.update(polciy={}), "polciy = {}: unknown key, allowed here: schema, backbone"),
    ],
)
def test_rules_between_keys(change: Callable[[dict[str, Any]], object], expected: str) -> None:
    assert any(expected in line for line in problems(change))


def test_what_is_wrong_in_a_shared_section_is_said_once() -> None:
    lines = problems(lambda d: d["ranking"].update(keep=9))
    assert lines == ["params.yaml: ranking.keep = 9: must be at most rollouts.group_size = 8"]


@pytest.mark.parametrize(("prompts", "samples", "bootstrap", "least"), [(2, 1, 4, 4), (3, 1, 4, 4), (1, 1, 0, 2)])
def test_distances_want_images_enough(prompts: int, samples: int, bootstrap: int, least: int) -> None:
    given = {"prompts": prompts, "samples_per_prompt": samples, "bootstrap": bootstrap, "images": 1}
    lines = problems(lambda d: d["evaluation"].update(given))
    words = f"must be so many that evaluation.distances see {least} images or more"
    assert lines == [f"params.yaml: evaluation.prompts = {prompts}: {words}"]
    for change in ({"samples_per_prompt": 4}, {"distances": {}, "matched": None, "diversity": None}):
        data = deepcopy(SHAPES)
        data["evaluation"] |= given | change
        parse(data)


def test_an_arm_that_keeps_more_than_its_group_has_is_named() -> None:
    lines = problems(lambda d: d["arms"]["coevolved"]["rollouts"].update(group_size=4))
    assert lines == ["params.yaml: arms.coevolved.ranking.keep = 8: must be at most rollouts.group_size = 4"]


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    text = resolve(ROOT / "profiles/tiny.yaml").replace("learning_rate: 1.0e-4", "learning_rate: 1e-4")
    (tmp_path / "params.yaml").write_text(text)
    assert load(tmp_path / "params.yaml").policy.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: [0]\nrounds: 1\nseeds: [1]\n", 'line 3, column 1: "seeds" is there twice; remove one'),
        ("arms:\n  one:\n\ttwo: 1\n", "line 3, column 1: a tab; indent with spaces"),
        ("a: [1, 2\nb: 3\n", "line 2, column 2: "),
        ("a: *b\n", "line 1, column 4: "),
    ],
)
def test_what_is_no_yaml_is_named_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"params.yaml is not readable as YAML: {words}")) as found:
        load(tmp_path / "params.yaml")
    assert len(str(found.value)) < len(str(tmp_path)) + 120


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist") as missing:
        load(tmp_path / "nothing.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1, 2\nb: }")
    with pytest.raises(ConfigError, match=r"broken.yaml is not readable as YAML") as broken:
        load(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must be a mapping of sections"):
        load(tmp_path / "list.yaml")
    assert "\n" not in str(missing.value) + str(broken.value)
