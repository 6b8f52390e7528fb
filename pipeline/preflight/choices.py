"""What `rank-e validate` says of keys that are right but without effect, or that are a choice to be aware of."""

from collections.abc import Iterator

from rank_e.config import ArmParams, Params
from rank_e.config.decoder import RULE_KEYS

SAMPLING = ("guidance", "temperature", "top_k", "top_p")


def choices(params: Params) -> list[str]:
    """A line for each such key; what holds of every arm is said once, of the shared section."""
    shared = list(_of(params, params))
    if params.data.held_out == params.data.training:
        shared.append("data.held_out is data.training: what is judged was trained on; name another split")
    found = shared + [
        f"arms.{name}.{line}" for name in params.arms for line in _of(params.arm(name), params) if line not in shared
    ]
    return [f"note: {line}" for line in found]


def _of(arm: ArmParams | Params, params: Params) -> Iterator[str]:
    """The lines of one arm, or of the shared sections."""
    decoder, ranking, rollouts = arm.decoder, arm.ranking, arm.rollouts
    if decoder.train:
        for rule, keys in RULE_KEYS.items():
            for key in keys if rule != decoder.adversarial_rule else ():
                value = getattr(decoder, key)
                if value is not None:
                    why = f"no effect under adversarial_rule: {decoder.adversarial_rule}"
                    yield f"decoder.{key} = {value:g} has {why}; write null"
        if decoder.rank_weighting != "uniform" and ranking.keep == 1:
            yield "ranking.temperature has no effect with keep: 1, where every rank weight is 1"
        rounds = len(params.rounds)
        steps = decoder.steps * (rounds + 1 - decoder.first_round)
        if decoder.first_round > rounds:
            yield f"decoder.first_round = {decoder.first_round}: no round trains the decoder, a run has {rounds}"
        elif decoder.discriminator_start >= steps:
            start = f"decoder.discriminator_start = {decoder.discriminator_start}"
            yield f"{start}: the discriminator never starts, a run has {steps} decoder steps"
    for key in SAMPLING:
        judged, drawn = getattr(params.evaluation, key), getattr(rollouts, key)
        if judged != drawn:
            choice = f"is not evaluation.{key} = {judged:g}"
            yield f"rollouts.{key} = {drawn:g} {choice}: judged is another distribution than the one trained on"
