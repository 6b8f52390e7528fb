"""Guards: a round that has gone astray ends before its weights are the next round's input."""

import math

from rank_e.errors import RankEError
from stages.runtime.stage import Stage

FIXES = {
    "kl": "lower policy.learning_rate or raise policy.kl_coefficient",
    "token_drift": "lower policy.learning_rate, raise policy.kl_coefficient, or go on from fewer rounds",
    "gradient_norm": "lower policy.learning_rate, or look at the rewards",
    "clip_fraction": "lower policy.learning_rate, or make fewer updates of a round's rollouts",
}


class GuardError(RankEError):
    """A round passed a limit of `guards`."""


def check_guards(stage: Stage, **values: float) -> None:
    """GuardError names each value that passed its limit in `params.yaml`, and what of the run is kept.

    A value that is no number passes every limit.
    """
    limits = stage.params.guards.model_dump()
    passed = [(name, value, limits[name]) for name, value in values.items() if limits[name] is not None]
    lines = [
        f"{name} = {value:.4g} passed guards.{name} = {limit:g}: {FIXES[name]}, or raise the guard"
        for name, value, limit in passed
        if math.isnan(value) or value > limit
    ]
    if lines:
        kept = f"round {stage.round} is not written, round {stage.round - 1} is kept"
        raise GuardError("\n".join(f"{stage.title}: {line}; {kept}" for line in lines))
