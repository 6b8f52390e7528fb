"""The sections of `params.yaml` that describe a run; `rank_e.config` reads and checks the file."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rank_e.config.kinds import DiscriminatorParams, PerceptualParams, RewardParams
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
    """Which generator is post-trained, and the folder of its base weights."""

    name: Name
    base: Text


class WeightsParams(Section):
    """Folders of local network files: what rewards and decoder update read, and what the metrics read."""

    training: Text
    evaluation: Text


class RuntimeParams(Section):
    """Where the stages compute, and how: device, CPU threads of one stage, dtype of networks.

    deterministic: the same bytes twice on one device; false takes the fastest algorithms.
    fast: on CUDA sampling replays captured steps, compiled in bfloat16; false runs the same steps one by one. A CPU has
    one way.
    """

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)]
    dtype: Literal["float32", "bfloat16"]
    deterministic: bool
    fast: bool


class Round(Section):
    """One round of the alternation and the one that it starts from."""

    id: Count
    prev: CountOrZero


class SftParams(Section):
    """The supervised start of every arm: next-token cross-entropy on real images.

    `train: false` starts from the base.
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

    kl (nats), gradient_norm (before clipping) and clip_fraction are means over a round's policy updates; token_drift is
    the KL (nats) of the codes that a round's rollouts use to those that round 1's did. They decide no bytes: a stage
    that is done stays done.
    """

    kl: Positive | None
    token_drift: Positive | None
    gradient_norm: Positive | None
    clip_fraction: Rate | None


class PromptsParams(Section):
    """How many prompts a round takes, without replacement while there are enough."""

    per_round: Count


class RolloutsParams(Section):
    """The sampled distribution: G a prompt, guidance, temperature, top-k (0: off), top-p (1: off).

    batch_size samples run at once; auto: as many as the device's free memory holds.
    """

    group_size: Annotated[int, Field(ge=2, le=1024)]
    guidance: Annotated[float, Field(ge=1, le=100)]
    temperature: Positive
    top_k: CountOrZero
    top_p: Rate
    batch_size: Count | Literal["auto"]


class Annealing(Section):
    """tau of the rank weights: half a cosine from start to end over the first `rounds` rounds, then end."""

    start: Positive
    end: Positive
    rounds: Count


class RankingParams(Section):
    """The rewards, and what their order becomes: advantages, and weights of a group's best `keep` (softmax at tau).

    A group whose rewards spread less than minimum_std ranks nothing; advantages lie within +- advantage_clamp.
    """

    rewards: Annotated[dict[MetricName, RewardParams], Field(min_length=1)]
    minimum_std: Rate
    advantage_clamp: Positive
    keep: Count
    temperature: Annealing
    batch_size: Count


class PolicyParams(Section):
    """The policy update (GRPO; RankE, arXiv 2605.21195, stage 1).

    minibatch_size rollouts make an update; their gradients are added up over microbatch_size of them at a time.
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


class DecoderParams(Section):
    """The decoder update (RankE, arXiv 2605.21195, stage 2).

    `train: false` hands the decoder on as it is, and so do the rounds before first_round.

    Of the discriminator_steps of a decoder step, all but the last one are on batches of their own.

    microbatch_size images of a kind (rollouts, reals) are held with their gradients at a time; it moves memory alone.

    How strongly the alignment terms pull is said in the words of adversarial_rule: by lambda_gan and lambda_reward
    under "adaptive", by adversarial_ratio alone and reward_ratio under "gradient_norm". The other rule's may be null.
    """

    train: bool
    first_round: Count
    steps: Count
    rollouts_per_step: Count
    reals_per_step: Count
    microbatch_size: Count
    learning_rate: Rate
    discriminator_learning_rate: Rate
    betas: Betas
    weight_decay: Fraction
    gradient_clip: Positive
    lambda_gan: Weight | None
    lambda_reward: Weight | None
    lambda_reconstruction: Weight
    lambda_consistency: Weight
    l1_weight: Weight
    perceptual: PerceptualParams
    perceptual_weight: Weight
    adversarial_rule: Literal["gradient_norm", "adaptive"]
    adversarial_ratio: Weight
    reward_ratio: Weight | None
    rank_weighting: Literal["rank", "uniform", "shuffled"]
    discriminator_inputs: Literal["rollouts", "reconstructions", "both"]
    discriminator: DiscriminatorParams
    discriminator_start: CountOrZero
    discriminator_warmup_steps: CountOrZero
    discriminator_steps: Count
    instance_noise: Fraction
    lecam: Weight
    ema_decay: BelowOne

    @property
    def rewarded(self) -> bool:
        """Whether L_reward has a weight: the reward's gradient is then needed."""
        weight = self.lambda_reward if self.adversarial_rule == "adaptive" else self.reward_ratio
        return bool(weight)


RULE_KEYS = {"adaptive": ("lambda_gan", "lambda_reward"), "gradient_norm": ("reward_ratio",)}
"""The keys of `decoder` that only one `adversarial_rule` reads."""


class Arm(Section):
    """One arm's overrides, section by section; an empty mapping takes the shared section as it is."""

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
