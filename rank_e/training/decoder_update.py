"""Stage 2, pixel ranking: the decoder learns from ranked decodings of the policy's own tokens (Rank-GAN), policy fixed.

RankE (arXiv 2605.21195), stage 2; `objectives.decoder_loss` holds its L_D. Encoder and codebook are never touched:
tokens keep their meaning, only what they look like evolves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rank_e import seeds
from rank_e.backbones.protocol import TokenizerModel
from rank_e.config import DecoderParams
from rank_e.io.pixels import from_signed, to_signed
from rank_e.objectives.anchors import consistency
from rank_e.objectives.decoder_loss import (
    OFF,
    Terms,
    TermWeights,
    adaptive_weights,
    decoder_loss,
    gradient_norm_weights,
)
from rank_e.objectives.rank_gan import rank_gan_loss, reward_loss
from rank_e.training.discriminator_update import Discriminator, DiscriminatorUpdate
from rank_e.training.ema import ema_update
from rank_e.training.networks import Perceptual
from rank_e.training.optimizer import NamedAdamW
from rank_e.training.ranked_images import RankedBatch, RankedBatches, RankedImages, applied_weights
from rank_e.training.update import UpdateState

ENCODED_AT_ONCE = 64  # real images
FAKES = ("rollouts", "reconstructions")
DifferentiableReward = Callable[[Tensor, list[str]], Tensor]  # images in [0, 1], prompts -> scores [N]


@dataclass
class Nets:
    """The networks of stage 2: two tokenizers of one encoder and codebook, a discriminator, and two that are frozen.

    `reward` is None where L_reward weighs nothing: one without a gradient is then fine, and none is computed in vain.
    """

    online: TokenizerModel
    average: TokenizerModel
    discriminator: Discriminator
    reward: DifferentiableReward | None
    perceptual: Perceptual


class DecoderUpdate:
    """Alternates discriminator and decoder; a step's random numbers are a function of (seed, round, index).

    An `Update`. Before the decoder's first step ever, `discriminator_warmup_steps` steps of a negative index train the
    discriminator alone.
    """

    def __init__(
        self,
        nets: Nets,
        data: RankedImages,
        params: DecoderParams,
        seed: int,
        round_id: int,
        steps_before: int,
    ) -> None:
        """steps_before counts the decoder steps of earlier rounds: discriminator_start is measured from there."""
        self.nets, self.params = nets, params
        self.seed, self.round_id, self.steps_before = seed, round_id, steps_before
        self.steps = params.steps
        self.first_step = -params.discriminator_warmup_steps if steps_before == 0 else 0
        self.named = nets.online.decoder_parameters()
        for parameter in nets.online.parameters():
            parameter.requires_grad_(False)
        for _, parameter in self.named:
            parameter.requires_grad_(True)
        device = self.named[0][1].device
        self.optimizer = NamedAdamW("decoder.learning_rate", self.named, params.learning_rate, params)
        self.discriminator = DiscriminatorUpdate(nets.discriminator, params, device)
        weights = applied_weights(data.weights, params.rank_weighting, seeds.generator(seed, "shuffle", round_id))
        with torch.no_grad():  # the encoder is frozen: one pass over the round's real images serves all steps
            real_tokens = torch.cat([self._encode(images) for images in data.reals.split(ENCODED_AT_ONCE)])
        self.batches = RankedBatches(data, weights, real_tokens, params, device)

    def _encode(self, images: Tensor) -> Tensor:
        """Tokens int64 [n, L] of images in [0, 1], which may lie elsewhere and be of a wider type."""
        return self.nets.online.encode(to_signed(images).to(self.named[0][1]))[1].to(images.device)

    def _decode(self, batch: RankedBatch, kinds: tuple[str, ...]) -> dict[str, Tensor]:
        """Decodings [n, 3, H, W], about in [0, 1], of the rollouts and of the real images' tokens, by kind."""
        tokens = {"rollouts": batch.tokens, "reconstructions": batch.real_tokens}
        return {kind: from_signed(self.nets.online.decode_tokens(tokens[kind]).float()) for kind in kinds}

    @property
    def shown(self) -> tuple[str, ...]:
        """The kinds of fakes that the discriminator is trained on."""
        kind = self.params.discriminator_inputs
        return FAKES if kind == "both" else (kind,)

    def step(self, index: int) -> dict[str, float]:
        """Step `index` of this round: discriminator, then decoder, then EMA; below 0 the discriminator alone.

        Returns discriminator and gap (from its start on), reward, the weights that the rule measured, loss (L_D), l1,
        perceptual, consistency and grad_norm (before clipping). RankEError for a gradient that is not finite.
        """
        if index < 0:
            return self._warm_up(index)
        nets, generator = self.nets, seeds.generator(self.seed, "decoder", self.round_id, index)
        batch = self.batches.batch(generator)
        with torch.no_grad():
            anchor = from_signed(nets.average.decode_tokens(batch.tokens).float())
        images = self._decode(batch, FAKES)
        metrics: dict[str, float] = {}
        started = self.steps_before + index >= self.params.discriminator_start
        if started:
            fakes = torch.cat([images[kind] for kind in self.shown])
            metrics |= self.discriminator.step(index, batch.reals, fakes, generator)
        reconstruction, consist, anchor_metrics = self._anchor_terms(batch, images, anchor)
        reward, rank_gan, adversarial, alignment_metrics = self._alignment_terms(
            batch, images, generator if started else None
        )
        terms = Terms(reward, rank_gan, adversarial, reconstruction, consist)
        weights = self._weights(terms, images)
        loss = decoder_loss(terms, weights)
        self.optimizer.zero_grad()
        loss.backward()
        norm = self.optimizer.step(index)
        ema_update(dict(nets.average.decoder_parameters()), dict(self.named), self.params.ema_decay)
        return (
            metrics
            | alignment_metrics
            | weights.measured
            | {"loss": loss.item()}
            | anchor_metrics
            | {"grad_norm": norm}
        )

    def _warm_up(self, index: int) -> dict[str, float]:
        """The discriminator alone: real images against decodings, the decoder unmoved."""
        place = index - self.first_step
        generator = seeds.generator(self.seed, "decoder", self.round_id, "warmup", place)
        batch = self.batches.batch(generator)
        with torch.no_grad():
            fakes = torch.cat(list(self._decode(batch, self.shown).values()))
        return self.discriminator.step(index, batch.reals, fakes, generator)

    def _anchor_terms(
        self, batch: RankedBatch, images: dict[str, Tensor], anchor: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """L_recon (without the adaptive rule's share) and L_consist, and what the log says of them."""
        params, perceptual, reconstructions = self.params, self.nets.perceptual, images["reconstructions"]
        l1 = (reconstructions - batch.reals).abs().mean()
        seen = perceptual(reconstructions, batch.reals)
        reconstruction = params.l1_weight * l1 + params.perceptual_weight * seen
        consist = consistency(perceptual, images["rollouts"], anchor)
        anchor_metrics = {"l1": l1.item(), "perceptual": seen.item(), "consistency": consist.item()}
        return reconstruction, consist, anchor_metrics

    def _alignment_terms(
        self, batch: RankedBatch, images: dict[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """L_reward, L_RankGAN and the adaptive rule's share of L_recon, and what the log says of them.

        No generator: the discriminator has not started yet.
        """
        reward = rank_gan = adversarial = OFF
        alignment_metrics: dict[str, float] = {}
        if self.nets.reward is not None:
            scores = self.nets.reward(images["rollouts"], batch.prompts)
            reward = reward_loss(scores, batch.weights)
            alignment_metrics["reward"] = scores.mean().item()
        if generator is not None:
            rank_gan = rank_gan_loss(self.discriminator.logits(images["rollouts"], generator), batch.weights)
            if self.params.adversarial_rule == "adaptive":
                adversarial = -self.discriminator.logits(images["reconstructions"], generator).mean()
        return reward, rank_gan, adversarial, alignment_metrics

    def _weights(self, terms: Terms, images: dict[str, Tensor]) -> TermWeights:
        """What each term weighs, by the rule of `decoder.adversarial_rule`."""
        if self.params.adversarial_rule == "gradient_norm":
            return gradient_norm_weights(terms, images["rollouts"], images["reconstructions"], self.params)
        return adaptive_weights(terms, self.nets.online.last_layer, self.params)

    def state(self) -> UpdateState:
        """online and ema (the decoder and post_quant_conv), discriminator, and optimizer: that of both, and LeCam's."""
        return {
            "online": self.nets.online.decoder_state(),
            "ema": self.nets.average.decoder_state(),
            "discriminator": self.nets.discriminator.state_dict(),
            "optimizer": self.optimizer.state() | self.discriminator.optimizer_state(),
        }

    def load(self, state: UpdateState) -> None:
        """Go on from a `state()`, of this round or of the one before; an error names what is missing."""
        self.nets.online.load_decoder_state(state["online"])
        self.nets.average.load_decoder_state(state["ema"])
        self.optimizer.load(state["optimizer"])
        self.discriminator.load(state["discriminator"], state["optimizer"])
