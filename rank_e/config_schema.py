"""The sections of `params.yaml`: names, types and ranges; `rank_e.config` reads and checks the file."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=10_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
ArmName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Betas = Annotated[list[BelowOne], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    """A group of parameters: unknown keys and silent conversions ("3", true, 2.0 for 2) are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BackboneParams(Section):
    """Which generator is post-trained, and the folder of its base weights."""

    name: Name
    base: Annotated[str, Field(min_length=1)]


class RuntimeParams(Section):
    """Where the stages compute: device, CPU threads of one stage, dtype of the weights."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)]
    dtype: Literal["float32", "bfloat16"]


class Round(Section):
    """One round of the alternation and the one that it starts from."""

    id: Count
    prev: CountOrZero


class PromptsParams(Section):
    """How many prompts a round draws, without replacement while there are enough."""

    per_round: Count


class RolloutsParams(Section):
    """The sampled distribution: G a prompt, guidance, temperature, top-k (0: off), top-p (1: off)."""

    group_size: Annotated[int, Field(ge=2, le=1024)]
    guidance: Annotated[float, Field(ge=1, le=100)]
    temperature: Positive
    top_k: CountOrZero
    top_p: Rate
    batch_size: Count


class Annealing(Section):
    """tau of the rank weights: half a cosine from start to end over the first `rounds` rounds, then end."""

    start: Positive
    end: Positive
    rounds: Count


class RankingParams(Section):
    """The reward, and how its order becomes weights: the best `keep` of a group, softmax at tau."""

    reward: Name
    keep: Count
    temperature: Annealing
    batch_size: Count


class PolicyParams(Section):
    """The policy update (GRPO; RankE, arXiv 2605.21195, stage 1)."""

    epochs: Count
    minibatch_size: Count
    learning_rate: Rate
    betas: Betas
    weight_decay: Fraction
    gradient_clip: Positive
    clip_epsilon: Rate
    kl_coefficient: Weight
    reference: Literal["base", "ema"]
    scoring: Literal["guided", "unguided"]
    advantage_clamp: Positive
    minimum_std: Rate
    ema_decay: BelowOne
    ema_every: Count
    checkpointing: bool


class DecoderParams(Section):
    """The decoder update (RankE, arXiv 2605.21195, stage 2); `train: false` hands the decoder on as it is."""

    train: bool
    steps: Count
    rollouts_per_step: Count
    reals_per_step: Count
    learning_rate: Rate
    discriminator_learning_rate: Rate
    betas: Betas
    weight_decay: Fraction
    gradient_clip: Positive
    lambda_gan: Weight
    lambda_reward: Weight
    lambda_reconstruction: Weight
    lambda_consistency: Weight
    l1_weight: Weight
    perceptual_weight: Weight
    adversarial_rule: Literal["gradient_norm", "adaptive"]
    adversarial_ratio: Weight
    reward_ratio: Weight
    rank_weighting: Literal["rank", "uniform", "shuffled"]
    discriminator_inputs: Literal["rollouts", "reconstructions", "both"]
    discriminator_channels: Count
    discriminator_layers: Annotated[int, Field(ge=1, le=8)]
    discriminator_start: CountOrZero
    discriminator_warmup_steps: CountOrZero
    instance_noise: Fraction
    lecam: Weight
    ema_decay: BelowOne


class EvaluationParams(Section):
    """What is measured: held-out prompts, samples of each, the real reference set, resamples (0: none)."""

    prompts: Count
    samples_per_prompt: Count
    guidance: Annotated[float, Field(ge=1, le=100)]
    temperature: Positive
    top_k: CountOrZero
    top_p: Rate
    batch_size: Count
    seed: Seed
    reference_pictures: Annotated[int, Field(ge=2, le=10_000_000)]
    bootstrap: CountOrZero
    pictures: Count


class FactorialParams(Section):
    """The table {policy of two arms} x {original decoder, decoder of each arm}, after the last round."""

    arms: Annotated[list[ArmName], Field(min_length=2, max_length=2)]
    round: Count


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
