"""The sections of `params.yaml` that describe a run; `rank_e.config` reads and checks the file."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rank_e.config.decoder import DecoderParams
from rank_e.config.kinds import RewardParams
from rank_e.config.types import (
    BelowOne,
    Betas,
    Count,
    CountOrZero,
    Fraction,
    MetricName,
    Name,
    Positive,
    Rate,
    Section,
    Text,
    Weight,
)


class BackboneParams(Section):
    """Which generator is post-trained.

    name: under which `rank_e/backbones` registers it.
    base: folder of its base weights, as `rank-e convert` writes it.
    """

    name: Name
    base: Text


class WeightsParams(Section):
    """Folders of local network files.

    training: what rewards and decoder update read.
    evaluation: what the metrics read.
    """

    training: Text
    evaluation: Text


class RuntimeParams(Section):
    """Where the stages compute, and how.

    device: `cpu`, `cuda` or `cuda:N`.
    threads: CPU threads of one stage.
    dtype: what networks compute in; trained weights, averages and optimisers are float32.
    deterministic: the same bytes twice on one device; false takes the fastest algorithms.
    fast: on CUDA sampling replays captured steps, and in bfloat16 the layers of sampling and of the policy update are
        compiled; false runs the same one by one. A CPU has one way.
    """

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)]
    dtype: Literal["float32", "bfloat16"]
    deterministic: bool
    fast: bool


class Round(Section):
    """One round of the alternation and the one that it starts from.

    id: 1, 2, 3, ... in the order of the list.
    prev: the round whose weights it starts from, id - 1; 0 is the base, after the supervised start if there is one.
    """

    id: Count
    prev: CountOrZero


class SftParams(Section):
    """The supervised start of every arm: next-token cross-entropy on real images.

    train: false starts from the base.
    images: pairs of `data.training` that it takes.
    steps: updates.
    batch_size: pairs an update.
    microbatch_size: pairs whose gradients are held at a time; it moves memory alone.
    learning_rate: AdamW's, after the warm-up.
    warmup_steps: updates over which the learning rate rises linearly.
    betas: AdamW's.
    weight_decay: AdamW's.
    gradient_clip: norm to which an update's gradient is clipped.
    caption_dropout: share of captions that are dropped, so that the policy can be guided.
    ema_decay: of the moving average of the weights, which every arm starts from.
    ema_every: updates from one step of the average to the next.
    checkpointing: layers are computed again in the backward pass: less memory, more time.
    """

    train: bool
    images: Count
    steps: Count
    batch_size: Count
    microbatch_size: Count
    learning_rate: Rate
    warmup_steps: CountOrZero
    betas: Betas
    weight_decay: Fraction
    gradient_clip: Positive
    caption_dropout: BelowOne
    ema_decay: BelowOne
    ema_every: Count
    checkpointing: bool


class GuardsParams(Section):
    """What a round may not pass: it then ends before its weights are the next one's input. null: no limit.

    They decide no bytes: a stage that is done stays done.

    kl: nats, mean over a round's policy updates.
    token_drift: nats, KL of the codes that a round's rollouts use to those that round 1's did.
    gradient_norm: of the policy before clipping, mean over a round's updates.
    clip_fraction: share of tokens whose ratio is clipped, mean over a round's updates.
    """

    kl: Positive | None
    token_drift: Positive | None
    gradient_norm: Positive | None
    clip_fraction: Rate | None


class PromptsParams(Section):
    """The prompts of a round, which all arms share.

    per_round: how many it takes, without replacement while there are enough.
    """

    per_round: Count


class RolloutsParams(Section):
    """The sampled distribution.

    group_size: rollouts a prompt, G.
    guidance: classifier-free guidance; 1: off.
    temperature: of the softmax.
    top_k: the most likely tokens that can be drawn; 0: off.
    top_p: the probability that they hold at least; 1: off.
    batch_size: samples at once; auto: as many as the device's free memory holds.
    """

    group_size: Annotated[int, Field(ge=2, le=1024)]
    guidance: Annotated[float, Field(ge=1, le=100)]
    temperature: Positive
    top_k: CountOrZero
    top_p: Rate
    batch_size: Count | Literal["auto"]


class Annealing(Section):
    """tau of the rank weights: half a cosine, then constant.

    start: tau in round 1.
    end: tau after `rounds` rounds.
    rounds: rounds from one to the other.
    """

    start: Positive
    end: Positive
    rounds: Count


class RankingParams(Section):
    """The rewards, and what their order becomes: advantages, and weights of a group's best (softmax at tau).

    rewards: by name of your choice, each of a kind below; their weighted sum is what is ranked.
    minimum_std: a group whose rewards spread less ranks nothing.
    advantage_clamp: advantages lie within +- this.
    keep: the best of a group, which train the decoder.
    temperature: tau by round.
    batch_size: images that are decoded and scored at once.
    """

    rewards: Annotated[dict[MetricName, RewardParams], Field(min_length=1)]
    minimum_std: Rate
    advantage_clamp: Positive
    keep: Count
    temperature: Annealing
    batch_size: Count


class PolicyParams(Section):
    """The policy update (GRPO; RankE, arXiv 2605.21195, stage 1).

    epochs: passes over a round's rollouts.
    minibatch_size: rollouts an update.
    microbatch_size: rollouts whose gradients are held at a time; it moves memory alone.
    learning_rate: AdamW's.
    betas: AdamW's.
    weight_decay: AdamW's.
    gradient_clip: norm to which an update's gradient is clipped.
    clip_epsilon: how far the ratio of probabilities counts on either side of 1.
    kl_coefficient: weight of the anchor, half the squared difference of log-probabilities; 0: none.
    reference: the anchor's policy: the initial one (base), or the moving average (ema).
    scoring: log-probabilities under the sampled distribution (guided), or without guidance (unguided).
    ema_decay: of the moving average of the weights, which is evaluated.
    ema_every: updates from one step of the average to the next.
    checkpointing: layers are computed again in the backward pass: less memory, more time.
    """

    epochs: Count
    minibatch_size: Count
    microbatch_size: Count
    learning_rate: Rate
    betas: Betas
    weight_decay: Fraction
    gradient_clip: Positive
    clip_epsilon: Rate
    kl_coefficient: Weight
    reference: Literal["base", "ema"]
    scoring: Literal["guided", "unguided"]
    ema_decay: BelowOne
    ema_every: Count
    checkpointing: bool

    @property
    def reads_base(self) -> bool:
        """Whether the initial policy takes part: as the anchor, and only where there is one."""
        return self.reference == "base" and self.kl_coefficient > 0


class Arm(Section):
    """One arm's overrides; what it does not override it shares.

    rollouts, ranking, policy, decoder: keys of the section; an empty mapping takes it as it is.
    """

    rollouts: dict[str, Any]
    ranking: dict[str, Any]
    policy: dict[str, Any]
    decoder: dict[str, Any]


class ArmParams(Section):
    """The four sections of one arm after merging its overrides into the shared ones."""

    rollouts: RolloutsParams
    ranking: RankingParams
    policy: PolicyParams
    decoder: DecoderParams


SECTIONS: dict[str, type[Section]] = {
    "rollouts": RolloutsParams,
    "ranking": RankingParams,
    "policy": PolicyParams,
    "decoder": DecoderParams,
}
"""The sections of `params.yaml` that an arm may override."""
