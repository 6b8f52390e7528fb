"""The rewards that a stage ranks by."""

from collections.abc import Mapping
from typing import Any

from rank_e.rewards.mixture import Mixture, build_rewards
from stages.runtime.backbone import dtype_of
from stages.runtime.stage import Stage


def rewards_of(stage: Stage, state: Mapping[str, Any]) -> Mixture:
    """The arm's rewards in `runtime.dtype`, going on from the running statistics in `state` (empty: none yet)."""
    sections, folder = stage.arm_params.ranking.rewards, stage.params.weights.training
    mixture = build_rewards(sections, folder, stage.device, dtype_of(stage))
    if state:
        mixture.load_state(state)
    return mixture
