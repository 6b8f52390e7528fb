"""What `rank-e validate` says of keys without effect and of choices to be aware of."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.preflight.choices import choices
from rank_e.config import parse
from rank_e.config.profiles import load_profile, resolve

PROFILES = sorted((Path(__file__).parents[3] / "profiles").glob("*.yaml"))


def said(**changes: Any) -> list[str]:
    """The lines for the tiny profile with keys set by their path, dots written as two underscores."""
    data = YAML(typ="safe", pure=True).load(resolve(next(path for path in PROFILES if path.stem == "tiny")))
    for name, value in changes.items():
        section = data
        *way, key = name.split("__")
        for part in way:
            section = section[part]
        section[key] = value
    return choices(parse(data))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_sets_nothing_in_vain(path: Path) -> None:
    lines = [line for line in choices(load_profile(path)) if "no effect" in line or "never" in line]
    assert not [line for line in lines if not line.startswith("note: arms.keep_1.")]  # that one shows what it costs


def test_a_weight_of_the_other_rule_is_named() -> None:
    no_effect = "has no effect under adversarial_rule: gradient_norm; write null"
    lines = said(decoder__lambda_reward=0.5, decoder__lambda_gan=1.0)
    assert lines == [f"note: decoder.lambda_gan = 1 {no_effect}", f"note: decoder.lambda_reward = 0.5 {no_effect}"]
    assert said(arms__coevolved__decoder={"lambda_reward": 0.5}) == [
        f"note: arms.coevolved.decoder.lambda_reward = 0.5 {no_effect}"
    ]
    assert said(arms__frozen__decoder={"train": False, "lambda_reward": 0.5}) == []
    lines = said(decoder__adversarial_rule="adaptive", decoder__lambda_gan=1.0, decoder__lambda_reward=0.0)
    assert lines == ["note: decoder.reward_ratio = 0 has no effect under adversarial_rule: adaptive; write null"]


def test_what_cannot_come_into_play_is_named() -> None:
    assert said(ranking__keep=1) == [
        "note: ranking.temperature has no effect with keep: 1, where every rank weight is 1"
    ]
    assert said(decoder__discriminator_start=4) == [
        "note: decoder.discriminator_start = 4: the discriminator never starts, a run has 4 decoder steps"
    ]
    assert said(decoder__discriminator_start=3) == []
    assert said(decoder__discriminator_start=2, decoder__first_round=2) == [
        "note: decoder.discriminator_start = 2: the discriminator never starts, a run has 2 decoder steps"
    ]
    assert said(decoder__discriminator_start=1, decoder__first_round=2) == []
    assert said(decoder__first_round=3) == ["note: decoder.first_round = 3: no round trains the decoder, a run has 2"]


@pytest.mark.parametrize(
    "key, value, text",
    [("guidance", 1.0, "2 is not evaluation.guidance = 1"), ("top_k", 5, "0 is not"), ("top_p", 0.5, "1 is not")],
)
def test_another_sampling_in_evaluation_is_a_choice_that_is_named(key: str, value: float, text: str) -> None:
    (line,) = said(**{f"evaluation__{key}": value})
    assert line.startswith(f"note: rollouts.{key} = {text}") and line.endswith("than the one trained on")
    assert said(arms__frozen__rollouts={"guidance": 4.0}) == [
        "note: arms.frozen.rollouts.guidance = 4 is not evaluation.guidance = 2: judged is another distribution "
        "than the one trained on"
    ]


def test_judging_on_what_was_trained_on_is_named() -> None:
    line = "note: data.held_out is data.training: what is judged was trained on; name another split"
    assert line in said(data__held_out__split="train") and line not in said()
