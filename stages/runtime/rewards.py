"""The rewards that a stage ranks by."""

from collections.abc import Mapping
from typing import Any

from rank_e.rewards.mixture import Mixture, build_rewards
from stages.runtime.stage import Stage


def rewards_of(stage: Stage, state: Mapping[str, Any]) -> Mixture:
    """The arm's rewards, going on from the running statistics in `state` (empty: none yet)."""
    mixture = build_rewards(stage.arm_params.ranking.rewards, stage.params.weights.training, stage.device)
    if state:
        mixture.load_state(state)
    return mixture
