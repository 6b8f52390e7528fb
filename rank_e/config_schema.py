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
JudgeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
ArmName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1)]
Betas = Annotated[list[BelowOne], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    """A group of parameters: unknown keys and silent conversions ("3", true, 2.0 for 2) are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BackboneParams(Section):
    """Which generator is post-trained, and the folder of its base weights."""

    name: Name
    base: Text


class PromptFile(Section):
    """Prompts of their own: a file in the source's folder; a column is null where the file leaves no choice."""

    file: Text
    column: Text | None
    category: Text | None


class ShapesSource(Section):
    """The embedded world: prompts and pictures are drawn on demand; `folder` holds the code that draws them."""

    kind: Literal["shapes"]
    folder: Text
    split: Literal["train", "held_out"]


class Pairs(Section):
    """Pictures with captions in a folder; `prompts: null` takes the captions as prompts."""

    folder: Text
    prompts: PromptFile | None
    max_bad_share: BelowOne


class WebdatasetSource(Pairs):
    """Tars (`tars`, a pattern in the folder) of jpg, png or webp with txt or json; `column`: the caption's key."""

    kind: Literal["webdataset"]
    tars: Text
    column: Text | None


class FolderSource(Pairs):
    """Picture files in the folder, and a table of their captions (`captions`, a file in the folder)."""

    kind: Literal["folder"]
    captions: Text
    column: Text | None
    image_column: Text | None


class CocoSource(Pairs):
    """COCO 2014's own layout; a sample is a picture with its first caption, or with every caption one."""

    kind: Literal["coco"]
    split: Text
    every_caption: bool


Source = Annotated[ShapesSource | WebdatasetSource | FolderSource | CocoSource, Field(discriminator="kind")]


class DataParams(Section):
    """Where prompts and real pictures come from: `training` for the rounds, `held_out` for the evaluation."""

    training: Source
    held_out: Source


class WeightsParams(Section):
    """Folders of local network files: what rewards and decoder update read, and what the judges read."""

    training: Text
    evaluation: Text


class Plugin(BaseModel):
    """A thing built by its `kind` (a published one's name, or `package.module:factory`) from further keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    kind: Annotated[str, Field(min_length=1)]


class RewardParams(Plugin):
    """One reward of the mixture: its weight, and whether it is divided by its running standard deviation."""

    weight: Annotated[float, Field(ge=-1e6, le=1e6)]
    normalise: Literal["none", "running"]


class RuntimeParams(Section):
    """Where the stages compute: device, CPU threads of one stage, dtype of the weights."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)]
    dtype: Literal["float32", "bfloat16"]


class Round(Section):
    """One round of the alternation and the one that it starts from."""

    id: Count
    prev: CountOrZero


class SftParams(Section):
    """The supervised start of every arm: next-token cross-entropy on real pictures.

    `train: false` starts from the base.
    """

    train: bool
    pictures: Count
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
    """The rewards, and how their order becomes weights: the best `keep` of a group, softmax at tau."""

    rewards: Annotated[dict[JudgeName, RewardParams], Field(min_length=1)]
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
    advantage_clamp: Positive
    minimum_std: Rate
    ema_decay: BelowOne
    ema_every: Count
    checkpointing: bool


class PatchGANParams(Section):
    """The discriminator on patches, trained from scratch."""

    kind: Literal["patchgan"]
    channels: Count
    layers: Annotated[int, Field(ge=1, le=8)]


class ProjectedParams(Section):
    """Trainable heads on frozen networks: DINOv3 (a folder) and EfficientNet (a file of timm's, by its name)."""

    kind: Literal["projected"]
    dinov3: Text
    efficientnet: Text
    efficientnet_name: Text
    image_size: Count
    channels: Count


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
    perceptual: Plugin
    perceptual_weight: Weight
    adversarial_rule: Literal["gradient_norm", "adaptive"]
    adversarial_ratio: Weight
    reward_ratio: Weight
    rank_weighting: Literal["rank", "uniform", "shuffled"]
    discriminator_inputs: Literal["rollouts", "reconstructions", "both"]
    discriminator: Annotated[PatchGANParams | ProjectedParams, Field(discriminator="kind")]
    discriminator_start: CountOrZero
    discriminator_warmup_steps: CountOrZero
    instance_noise: Fraction
    lecam: Weight
    ema_decay: BelowOne


class PromptsBenchmark(Section):
    """Any prompt list with scores of its own, a mean for each of its categories; `prompts: 0` takes all of them."""

    kind: Literal["prompts"]
    file: Text
    column: Text | None
    category: Text | None
    prompts: CountOrZero
    samples_per_prompt: Count
    scores: Annotated[dict[JudgeName, Plugin], Field(min_length=1)]


class HPSv2Benchmark(Section):
    """HPSv2's four styles (a folder of its prompt files); `per_style: 0` takes all 800 of each; `model`: ViT-H-14."""

    kind: Literal["hpsv2"]
    prompts: Text
    per_style: CountOrZero
    file: Text
    model: Text


class GenEvalBenchmark(Section):
    """GenEval's prompts (its evaluation_metadata.jsonl), a Mask2Former folder, and a CLIP file for colours with its
    open_clip `model`: ViT-L-14-quickgelu.
    """

    kind: Literal["geneval"]
    prompts: Text
    samples_per_prompt: Count
    detector: Text
    clip: Text
    model: Text


Benchmark = Annotated[PromptsBenchmark | HPSv2Benchmark | GenEvalBenchmark, Field(discriminator="kind")]


class EvaluationParams(Section):
    """What is measured, on held-out prompts: Frechet distances to real pictures, scores, benchmarks, tokens.

    reference_pictures make the real statistics; real_pictures others are judged as the rows "real" and
    "reconstruction"; bootstrap resamples make the intervals (0: none).
    """

    prompts: Count
    samples_per_prompt: Count
    guidance: Annotated[float, Field(ge=1, le=100)]
    temperature: Positive
    top_k: CountOrZero
    top_p: Rate
    batch_size: Count
    seed: Seed
    reference_pictures: Annotated[int, Field(ge=2, le=10_000_000)]
    real_pictures: Annotated[int, Field(ge=2, le=10_000_000)]
    bootstrap: CountOrZero
    pictures: Count
    distances: dict[JudgeName, Plugin]
    scores: dict[JudgeName, Plugin]
    benchmarks: dict[JudgeName, Benchmark]


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
