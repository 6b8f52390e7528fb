"""The section `decoder` of `params.yaml`."""

from typing import Literal

from rank_e.config.kinds import DiscriminatorParams, PerceptualParams
from rank_e.config.types import BelowOne, Betas, Count, CountOrZero, Fraction, Positive, Rate, Section, Weight


class DecoderParams(Section):
    """The decoder update (RankE, arXiv 2605.21195, stage 2).

    How strongly the alignment terms pull is said in the words of adversarial_rule: by lambda_gan and lambda_reward
    under "adaptive", by adversarial_ratio alone and reward_ratio under "gradient_norm". The other rule's may be null.

    train: false hands the decoder on as it is.
    first_round: rounds before it hand the decoder on as it is.
    steps: updates a round.
    rollouts_per_step: kept rollouts an update.
    reals_per_step: real images an update.
    microbatch_size: images of a kind (rollouts, reals) held with their gradients at a time; it moves memory alone.
    learning_rate: AdamW's, of the decoder.
    discriminator_learning_rate: AdamW's, of the discriminator.
    betas: AdamW's, of both.
    weight_decay: AdamW's, of both.
    gradient_clip: norm to which an update's gradient is clipped.
    lambda_gan: weight of L_RankGAN under "adaptive", times adversarial_ratio.
    lambda_reward: weight of L_reward under "adaptive".
    lambda_reconstruction: weight of L_recon.
    lambda_consistency: weight of L_consist: same tokens, decoder against its moving average.
    l1_weight: of the pixels' L1 distance in L_recon.
    perceptual: the loss of L_recon and L_consist, of a kind below.
    perceptual_weight: of the perceptual loss in L_recon.
    adversarial_rule: gradients compared at the decoder's output (gradient_norm), or VQGAN's rule at its last layer.
    adversarial_ratio: gradient_norm: the adversarial gradient's norm over the reconstruction's; adaptive: the
        discriminator's weight.
    reward_ratio: the reward gradient's norm over the reconstruction's, under "gradient_norm"; 0: no reward.
    rank_weighting: weights by rank; uniform or shuffled ones are controls.
    discriminator_inputs: the fakes that the discriminator is trained on.
    discriminator: of a kind below.
    discriminator_start: decoder steps, counted over rounds, before it takes part.
    discriminator_warmup_steps: steps of the discriminator alone before the decoder's first.
    discriminator_steps: its steps before each step of the decoder, all but the last one on batches of their own.
    instance_noise: sigma of the noise on all that it sees, images in [0, 1]; 0: none.
    lecam: weight of its LeCam regularisation; 0: none.
    ema_decay: of the decoder's moving average, which scores rollouts and is evaluated.
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
