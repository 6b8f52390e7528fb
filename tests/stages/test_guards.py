"""A round that has gone astray is named, with what is kept; one within its limits passes."""

from pathlib import Path
from typing import Any

import pytest

from rank_e.config import load
from stages.runtime.guards import GuardError, check_guards
from stages.runtime.stage import Stage, make_stage

ROOT = Path(__file__).parents[2]


def stage(**limits: Any) -> Stage:
    params = load(ROOT / "profiles/shapes.yaml")
    off = dict.fromkeys(params.guards.model_dump())
    guards = params.guards.model_copy(update=off | limits)
    return make_stage("policy", params.model_copy(update={"guards": guards}), arm="frozen", seed=0, round=2)


def test_values_within_their_limits_pass_and_null_is_no_limit() -> None:
    check_guards(stage(kl=0.5, clip_fraction=0.2), kl=0.5, clip_fraction=0.0, gradient_norm=1e9)
    check_guards(stage(), kl=1e9, token_drift=float("inf"))


def test_every_value_past_its_limit_is_named_with_the_fix_and_what_is_kept() -> None:
    with pytest.raises(GuardError) as error:
        check_guards(stage(kl=0.5, clip_fraction=0.2, token_drift=1.0), kl=0.75, clip_fraction=0.25, token_drift=0.5)
    first, second = str(error.value).splitlines()
    assert first.startswith(
        "policy frozen s0 r2: kl = 0.75 passed guards.kl = 0.5: lower policy.learning_rate or raise"
    )
    assert first.endswith("or raise the guard; round 2 is not written, round 1 is kept")
    assert "clip_fraction = 0.25 passed guards.clip_fraction = 0.2" in second


def test_what_is_no_number_passes_every_limit() -> None:
    with pytest.raises(GuardError, match=r"kl = nan passed guards\.kl = 0\.5"):
        check_guards(stage(kl=0.5), kl=float("nan"))
