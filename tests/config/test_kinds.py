"""The table of kinds: each line against the factory that it names, and what a wrong section is told."""

import inspect
from importlib import import_module
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from rank_e.config import ConfigError, parse
from rank_e.config import kinds as table
from tests.helpers.project import ROOT

TABLES = ("RewardParams", "DistanceParams", "ScoreParams", "PerceptualParams", "DiscriminatorParams")


def members(name: str) -> list[type[table.Kind]]:
    """The built-in kinds of a table."""
    union = get_args(getattr(table, name))[0]
    return [model for model in (get_args(member)[0] for member in get_args(union)) if model.factory]


@pytest.mark.parametrize("name", TABLES)
def test_a_line_says_what_its_factory_takes(name: str) -> None:
    for model in members(name):
        module, _, attribute = model.factory.partition(":")
        parameters = inspect.signature(getattr(import_module(module), attribute)).parameters.values()
        keys = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"generator"}
        assert keys == model.model_fields.keys() - {"kind", *model.common}, model
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == ["folder", "device"]
        assert all(p.default is p.empty for p in parameters)  # a default stands in the table alone


def told(section: str, name: str, value: Any) -> str:
    """What params.yaml says of one wrong entry."""
    data = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    place = data
    for key in section.split("."):
        place = place[key]
    place[name] = value
    with pytest.raises(ConfigError) as error:
        parse(data)
    return str(error.value)


PLAIN = {"weight": 1.0, "normalise": "none"}


@pytest.mark.parametrize(
    ("section", "value", "messages"),
    [
        (
            "ranking.rewards",
            PLAIN | {"kind": "beauty"},
            [
                "ranking.rewards.x = {",
                "must be a mapping with kind: clip or hpsv2 or aesthetic or imagereward or package",
            ],
        ),
        ("ranking.rewards", {}, ["must be a mapping with kind: clip or hpsv2"]),
        ("ranking.rewards", 3, ["ranking.rewards.x = 3: must be a mapping with kind"]),
        ("ranking.rewards", PLAIN | {"kind": "clip"}, ["ranking.rewards.x.file is missing: must be text"]),
        (
            "ranking.rewards",
            {"kind": "clip", "file": 3, "size": "L", "weight": "1", "normalise": "batch"},
            [
                "ranking.rewards.x.file = 3: must be text that is not empty",
                'ranking.rewards.x.size = "L": unknown key, allowed here: kind, weight, normalise, file, model',
                'ranking.rewards.x.weight = "1": must be a number in [-1000000.0, 1000000.0]',
                'ranking.rewards.x.normalise = "batch": must be none or running',
            ],
        ),
        ("ranking.rewards", PLAIN | {"kind": "mine:"}, ['ranking.rewards.x.kind = "mine:": must be text that matches']),
        (
            "evaluation.distances",
            {"kind": "clip_score", "file": "x"},
            ["kind: inception or dinov2 or clip_features"],
        ),
        (
            "evaluation.scores",
            {"kind": "clip_score", "file": "x", "image_size": 0},
            ["x.image_size = 0: must be"],
        ),
        ("decoder", {"kind": "lpips"}, ["decoder.perceptual.file is missing"]),
    ],
)
def test_a_wrong_section_is_told_key_by_key(section: str, value: Any, messages: list[str]) -> None:
    text = told(section, "perceptual" if section == "decoder" else "x", value)
    for message in messages:
        assert message in text
    assert len(text.splitlines()) == (len(messages) if "size" in str(value) and len(messages) > 1 else 1)


def test_ones_own_takes_any_keys_and_is_called_with_them() -> None:
    data = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    data["ranking"]["rewards"]["x"] = PLAIN | {"kind": "mine.rewards:sharp", "power": 2.5, "names": ["a"]}
    reward = parse(data).ranking.rewards["x"]
    assert reward.path == "mine.rewards:sharp" and reward.options == {"power": 2.5, "names": ["a"]}
    assert list(reward.needs()) == []
    data["ranking"]["rewards"]["x"] = PLAIN | {"kind": "aesthetic", "file": "head.pth", "clip_file": "clip.pt"}
    reward = parse(data).ranking.rewards["x"]
    assert reward.path == "rank_e.rewards.aesthetic:aesthetic_reward"
    assert reward.options == {"file": "head.pth", "clip_file": "clip.pt", "model": table.OPENAI_L14}
    assert list(reward.needs()) == [("file", "file", "head.pth"), ("clip_file", "file", "clip.pt")]
