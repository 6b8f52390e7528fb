"""Stage 2, pixel ranking: the decoder learns from ranked decodings of the policy's own tokens (Rank-GAN), policy fixed.

RankE (arXiv 2605.21195), stage 2; `objectives.decoder_loss` holds its L_D. Encoder and codebook are never touched:
tokens keep their meaning, only what they look like evolves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rank_e import seeds
from rank_e.backbones.protocol import TokenizerModel
from rank_e.config import DecoderParams
from rank_e.io.pixels import from_signed, to_signed
from rank_e.objectives.anchors import consistency
from rank_e.objectives.decoder_loss import Weights, adaptive_weights, decoder_loss, gradient_norm_weights
from rank_e.objectives.rank_gan import rank_gan_loss, reward_loss
from rank_e.precision import Precision
from rank_e.training.discriminator_update import Discriminator, DiscriminatorUpdate
from rank_e.training.ema import ema_update
from rank_e.training.microbatched import Microbatched, joined
from rank_e.training.networks import Perceptual
from rank_e.training.optimizer import NamedAdamW
from rank_e.training.ranked_images import RankedBatch, RankedBatches, RankedImages, applied_weights
from rank_e.training.term_gradients import Means, TermGradients
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
    discriminator alone. However large `microbatch_size` is, a step is that of the whole batch: norms, means and
    discriminator are the batch's.
    """

    def __init__(
        self,
        nets: Nets,
        data: RankedImages,
        params: DecoderParams,
        seed: int,
        round_id: int,
        steps_before: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """steps_before counts the decoder steps of earlier rounds: discriminator_start is measured from there.

        dtype: what the networks compute in, float32 or bfloat16; their weights, and all losses, are float32.
        """
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
        self.precision = Precision(device, dtype)
        self.discriminator = DiscriminatorUpdate(nets.discriminator, params, self.precision)
        weights = applied_weights(data.weights, params.rank_weighting, seeds.generator(seed, "shuffle", round_id))
        with torch.no_grad():  # the encoder is frozen: one pass over the round's real images serves all steps
            real_tokens = torch.cat([self._encode(images) for images in data.reals.split(ENCODED_AT_ONCE)])
        self.batches = RankedBatches(data, weights, real_tokens, params, device)

    def _encode(self, images: Tensor) -> Tensor:
        """Tokens int64 [n, L] of images in [0, 1], which may lie elsewhere and be of a wider type."""
        return self.nets.online.encode(to_signed(images).to(self.named[0][1]))[1].to(images.device)

    def _decode(self, tokens: Tensor) -> Tensor:
        """Decodings float32 [n, 3, H, W], about in [0, 1], by the decoder that is trained."""
        return self._drawn(self.nets.online, tokens)

    def _drawn(self, tokenizer: TokenizerModel, tokens: Tensor) -> Tensor:
        with self.precision.autocast():
            images = tokenizer.decode_tokens(tokens)
        return from_signed(images.float())  # a float32 island: pixels are compared in float32

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
            return self._discriminate(index, "warmup", index - self.first_step)
        nets, size, generator = self.nets, self.params.microbatch_size, self._generator(index)
        batch = self.batches.batch(generator)
        with torch.no_grad():
            anchor = joined([self._drawn(nets.average, tokens) for tokens in batch.tokens.split(size)])
        started = self.steps_before + index >= self.params.discriminator_start
        adaptive = self.params.adversarial_rule == "adaptive"
        drawn = {
            "rollouts": Microbatched(self._decode, batch.tokens, size),
            "reconstructions": Microbatched(
                self._decode, batch.real_tokens, size, self._last_layer_alone if started and adaptive else torch.no_grad
            ),
        }
        metrics: dict[str, float] = {}
        noise: dict[str, Tensor] = {}
        if started:
            for turn in range(self.params.discriminator_steps - 1):
                self._discriminate(index, index, turn)
            fakes = torch.cat([images for kind in self.shown for images in drawn[kind].outputs])
            metrics |= self.discriminator.step(index, batch.reals, fakes, generator)
            judged = FAKES if adaptive else ("rollouts",)
            noise = {kind: self.discriminator.noise(drawn[kind].joined(), generator) for kind in judged}
        rollouts = TermGradients(drawn["rollouts"].outputs, self._rollout_means(batch, anchor, noise))
        reconstructions = TermGradients(drawn["reconstructions"].outputs, self._reconstruction_means(batch, noise))
        weights, of_weights = self._weights(rollouts, reconstructions, drawn["reconstructions"])
        self.optimizer.zero_grad()
        drawn["rollouts"].backward(rollouts.weighted(weights))
        drawn["reconstructions"].backward(reconstructions.weighted(weights))
        norm = self.optimizer.step(index)
        ema_update(dict(nets.average.decoder_parameters()), dict(self.named), self.params.ema_decay)
        loss = decoder_loss(rollouts.terms | reconstructions.terms, weights)
        logged = rollouts.logged | {"loss": loss} | reconstructions.logged
        logged |= {"consistency": rollouts.terms["consistency"]}
        order = ("reward", *of_weights, "loss", "l1", "perceptual", "consistency")
        values = {key: value.item() for key, value in logged.items()} | of_weights
        return metrics | {key: values[key] for key in order if key in values} | {"grad_norm": norm}

    def _generator(self, *names: int | str) -> torch.Generator:
        return seeds.generator(self.seed, "decoder", self.round_id, *names)

    def _discriminate(self, index: int, *names: int | str) -> dict[str, float]:
        """The discriminator alone, on a batch of its own: real images against decodings, the decoder unmoved."""
        generator = self._generator(*names)
        batch = self.batches.batch(generator)
        tokens = {"rollouts": batch.tokens, "reconstructions": batch.real_tokens}
        parts = [part for kind in self.shown for part in tokens[kind].split(self.params.microbatch_size)]
        with torch.no_grad():
            fakes = torch.cat([self._decode(part) for part in parts])
        return self.discriminator.step(index, batch.reals, fakes, generator)

    @contextmanager
    def _last_layer_alone(self) -> Iterator[None]:
        """A graph of the decoder's last layer and of nothing before it: what the adaptive rule measures at it."""
        for _, parameter in self.named:
            parameter.requires_grad_(parameter is self.nets.online.last_layer)
        yield
        for _, parameter in self.named:
            parameter.requires_grad_(True)

    def _rollout_means(
        self, batch: RankedBatch, anchor: Tensor, noise: dict[str, Tensor]
    ) -> Callable[[Tensor, slice], Means]:
        """L_consist, L_reward and L_RankGAN of a microbatch of rollouts; without noise no discriminator has started."""

        def means(images: Tensor, rows: slice) -> Means:
            with self.precision.autocast():  # the losses within it are float32 islands of their own
                seen = consistency(self.nets.perceptual, images, anchor[rows])
            yield "consistency", seen, {}
            if self.nets.reward is not None:
                scores = self.nets.reward(images, batch.prompts[rows])
                yield "reward", reward_loss(scores, batch.weights[rows]), {"reward": scores.mean()}
            if noise:
                logits = self.discriminator.logits(images + noise["rollouts"][rows])
                yield "rank_gan", rank_gan_loss(logits, batch.weights[rows]), {}

        return means

    def _reconstruction_means(self, batch: RankedBatch, noise: dict[str, Tensor]) -> Callable[[Tensor, slice], Means]:
        """L_recon of a microbatch of reconstructions, in its two terms: see `objectives.decoder_loss`."""
        params = self.params

        def means(images: Tensor, rows: slice) -> Means:
            l1 = (images - batch.reals[rows]).abs().mean()
            with self.precision.autocast():  # its distances are a float32 island of their own
                seen = self.nets.perceptual(images, batch.reals[rows])
            both = params.l1_weight * l1 + params.perceptual_weight * seen
            yield "reconstruction", both, {"l1": l1, "perceptual": seen}
            if "reconstructions" in noise:
                logits = self.discriminator.logits(images + noise["reconstructions"][rows])
                yield "adversarial", -logits.mean(), {}

        return means

    def _weights(
        self, rollouts: TermGradients, reconstructions: TermGradients, decoder: Microbatched
    ) -> tuple[Weights, dict[str, float]]:
        """What each term weighs by the rule of `decoder.adversarial_rule`, and what the log says of it."""
        if self.params.adversarial_rule == "gradient_norm":
            target, reward, rank_gan = (
                reconstructions.at_output_joined("reconstruction"),
                rollouts.at_output_joined("reward"),
                rollouts.at_output_joined("rank_gan"),
            )
            assert target is not None  # the term is always on
            return gradient_norm_weights(target, reward, rank_gan, self.params)
        if "adversarial" not in reconstructions.terms:
            return adaptive_weights(None, None, self.params)
        layer = self.nets.online.last_layer
        reconstruction = decoder.slope(layer, reconstructions.at_output("reconstruction"))
        adversarial = decoder.slope(layer, reconstructions.at_output("adversarial"))
        return adaptive_weights(reconstruction, adversarial, self.params)

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
