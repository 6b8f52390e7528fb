"""Stage 2, pixel ranking: the decoder learns from ranked decodings of the policy's own tokens (Rank-GAN), policy fixed.

RankE (arXiv 2605.21195), stage 2:
L_D = lambda_d L_reward + lambda_g L_RankGAN  (alignment)  +  lambda_r L_recon + lambda_c L_consist  (manifold anchor).
Encoder and codebook are never touched: tokens keep their meaning, only what they look like evolves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rank_e.backbones.protocol import TokenizerModel
from rank_e.config import DecoderParams
from rank_e.io.pixels import from_signed, to_signed
from rank_e.objectives.anchors import adaptive_weight, consistency, output_gradient_weight
from rank_e.objectives.rank_gan import hinge_discriminator_loss, lecam, rank_gan_loss, reward_loss
from rank_e.seeds import generator
from rank_e.training.ema import ema_update, load_optimizer_tensors, optimizer_tensors
from rank_e.training.projected_discriminator import Discriminator

LECAM_DECAY = 0.95
FAKES = ("rollouts", "reconstructions")
Perceptual = Callable[[Tensor, Tensor], Tensor]  # two batches of images in [0, 1] -> scalar
Reward = Callable[[Tensor, list[str]], Tensor]  # images in [0, 1], prompts -> scores [N]


@dataclass(frozen=True)
class RankedImages:
    """What the decoder learns from in one round.

    tokens [P, G, L], weights [P, G] (rank weights; 0 = not kept), prompts (P texts), reals [R, 3, H, W] in [0, 1].
    """

    tokens: Tensor
    weights: Tensor
    prompts: list[str]
    reals: Tensor


@dataclass
class Nets:
    """The networks of stage 2: two tokenizers that share encoder and codebook, one discriminator, two frozen judges.

    `reward` is None where lambda_reward is 0: one without a gradient is then fine, and none is computed in vain.
    """

    online: TokenizerModel
    average: TokenizerModel
    discriminator: Discriminator
    reward: Reward | None
    perceptual: Perceptual


@dataclass(frozen=True)
class Batch:
    """One step's draw: rollouts (tokens [n, L], weights [n], prompts) and real images with their codes [m, L]."""

    tokens: Tensor
    weights: Tensor
    prompts: list[str]
    reals: Tensor
    real_codes: Tensor


class DecoderUpdate:
    """Alternates one discriminator and one decoder step; every draw is a function of (seed, round, step)."""

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
        self.nets, self.data, self.params = nets, data, params
        self.seed, self.round_id, self.steps_before = seed, round_id, steps_before
        self.named = nets.online.decoder_parameters()
        self.parameters = [p for _, p in self.named]
        self.device = self.parameters[0].device
        self.judges = [(f"discriminator.{n}", p) for n, p in nets.discriminator.named_parameters()]
        for parameter in nets.online.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        beta1, beta2 = params.betas
        options: dict[str, Any] = {"betas": (beta1, beta2), "weight_decay": params.weight_decay}
        self.optimizer = torch.optim.AdamW(self.parameters, lr=params.learning_rate, **options)
        self.judge_optimizer = torch.optim.AdamW(
            nets.discriminator.parameters(), lr=params.discriminator_learning_rate, **options
        )
        self.lecam_real, self.lecam_fake = (torch.zeros((), device=self.device) for _ in range(2))
        self.weights = self._weights()
        with torch.no_grad():  # the encoder is frozen: one pass over the round's real images serves all steps
            self.real_codes = torch.cat([self._encode(part) for part in data.reals.split(64)])
        self.kept = (data.weights > 0).nonzero()

    def _encode(self, images: Tensor) -> Tensor:
        """Tokens int64 [n, L] of images in [0, 1], which may lie elsewhere and be of a wider type."""
        like = self.parameters[0]
        return self.nets.online.encode(to_signed(images).to(like))[1].to(images.device)

    def _weights(self) -> Tensor:
        """The round's rank weights, or a control: all equal, or the same weights dealt out at random in each group."""
        weights = self.data.weights
        if self.params.rank_weighting == "uniform":
            return (weights > 0).float()
        if self.params.rank_weighting == "shuffled":
            kept = weights > 0
            noise = torch.rand(weights.shape, generator=generator(self.seed, "shuffle", self.round_id))
            order = noise.masked_fill(~kept, 2.0).argsort(dim=1)
            place = kept.float().argsort(dim=1, descending=True, stable=True)
            return torch.zeros_like(weights).scatter(1, place, weights.gather(1, order))
        return weights

    def _batch(self, draw: torch.Generator) -> Batch:
        pick = self.kept[torch.randint(len(self.kept), (self.params.rollouts_per_step,), generator=draw)]
        prompt, rollout = pick.unbind(1)
        real = torch.randint(len(self.data.reals), (self.params.reals_per_step,), generator=draw)
        prompts = [self.data.prompts[p] for p in prompt.tolist()]
        tokens, weights = self.data.tokens[prompt, rollout], self.weights[prompt, rollout]
        tensors = (tokens, weights, self.data.reals[real], self.real_codes[real])
        tokens, weights, reals, codes = (tensor.to(self.device) for tensor in tensors)
        return Batch(tokens, weights, prompts, reals, codes)

    def _noisy(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Instance noise on every discriminator input, real and fake: without it the judge keys on decoder texture."""
        noise = torch.randn(images.shape, generator=draw).to(images)
        return images + self.params.instance_noise * noise

    def _decode(self, batch: Batch, kinds: tuple[str, ...] = FAKES) -> dict[str, Tensor]:
        """Fakes by kind: decoded rollouts, decoded codes of real images."""
        codes = {"rollouts": batch.tokens, "reconstructions": batch.real_codes}
        return {kind: from_signed(self.nets.online.decode_tokens(codes[kind]).float()) for kind in kinds}

    @property
    def _seen(self) -> tuple[str, ...]:
        """The kinds of fakes that the discriminator is shown."""
        kind = self.params.discriminator_inputs
        return FAKES if kind == "both" else (kind,)

    def _fakes(self, decoded: dict[str, Tensor]) -> Tensor:
        return torch.cat([decoded[kind] for kind in self._seen])

    def _judge_step(self, reals: Tensor, fakes: Tensor, draw: torch.Generator) -> dict[str, float]:
        """One hinge step of the discriminator on detached images, with LeCAM regularisation."""
        judge = self.nets.discriminator
        judge.train().requires_grad_(True)
        real = judge(self._noisy(reals, draw))
        fake = judge(self._noisy(fakes.detach(), draw))
        hinge = hinge_discriminator_loss(real, fake)
        self.lecam_real = self.lecam_real.lerp(real.detach().mean(), 1 - LECAM_DECAY)
        self.lecam_fake = self.lecam_fake.lerp(fake.detach().mean(), 1 - LECAM_DECAY)
        loss = hinge + self.params.lecam * lecam(real, fake, self.lecam_real, self.lecam_fake)
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), self.params.gradient_clip, error_if_nonfinite=True)
        self.judge_optimizer.step()
        judge.requires_grad_(False)
        return {"discriminator": hinge.item(), "gap": (real.mean() - fake.mean()).item()}

    @property
    def warmup_steps(self) -> int:
        """Discriminator-only steps still owed: all of them before the decoder's first step ever, none after."""
        return self.params.discriminator_warmup_steps if self.steps_before == 0 else 0

    def warm_up(self, index: int) -> dict[str, float]:
        """Discriminator-only step: real against decodings, the decoder unmoved."""
        draw = generator(self.seed, "decoder", self.round_id, "warmup", index)
        batch = self._batch(draw)
        with torch.no_grad():
            fakes = self._fakes(self._decode(batch, self._seen))
        return self._judge_step(batch.reals, fakes, draw)

    def step(self, index: int) -> dict[str, float]:
        """Step `index` of this round: discriminator, then decoder, then EMA."""
        params, nets = self.params, self.nets
        draw = generator(self.seed, "decoder", self.round_id, index)
        batch = self._batch(draw)
        reals, weights = batch.reals, batch.weights
        with torch.no_grad():
            anchor = from_signed(nets.average.decode_tokens(batch.tokens).float())
        decoded = self._decode(batch)
        rollouts, reconstructions = decoded["rollouts"], decoded["reconstructions"]
        adversarial = self.steps_before + index >= params.discriminator_start
        metrics: dict[str, float] = {}
        if adversarial:
            metrics |= self._judge_step(reals, self._fakes(decoded), draw)
        l1 = (reconstructions - reals).abs().mean()
        perceptual = nets.perceptual(reconstructions, reals)
        reconstruction = params.l1_weight * l1 + params.perceptual_weight * perceptual
        consist = consistency(nets.perceptual, rollouts, anchor)
        losses: dict[str, Tensor] = {}
        if nets.reward is not None:
            scores = nets.reward(rollouts, batch.prompts)
            losses["reward"] = reward_loss(scores, weights)
            metrics["reward"] = scores.mean().item()
        if adversarial:
            losses["gan"] = rank_gan_loss(nets.discriminator(self._noisy(rollouts, draw)), weights)
        total, applied = self._combine(losses, reconstruction, rollouts, reconstructions, draw)
        total = total + params.lambda_reconstruction * reconstruction + params.lambda_consistency * consist
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, params.gradient_clip, error_if_nonfinite=True)
        self.optimizer.step()
        ema_update(dict(nets.average.decoder_parameters()), dict(self.named), params.ema_decay)
        return (
            metrics
            | applied
            | {
                "loss": total.item(),
                "l1": l1.item(),
                "perceptual": perceptual.item(),
                "consistency": consist.item(),
                "grad_norm": norm.item(),
            }
        )

    def _combine(
        self,
        losses: dict[str, Tensor],
        reconstruction: Tensor,
        rollouts: Tensor,
        reconstructions: Tensor,
        draw: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Weigh the alignment terms against reconstruction.

        gradient_norm: each term's gradient at the decoder's output has a fixed share of the reconstruction's.
        adaptive (the paper): plain lambdas, and VQGAN's last-layer rule for the adversarial term on reconstructions.
        """
        params = self.params
        lambdas = {"gan": params.lambda_gan, "reward": params.lambda_reward}
        if params.adversarial_rule == "gradient_norm":
            shares = {"gan": params.adversarial_ratio, "reward": params.reward_ratio}
            (target,) = torch.autograd.grad(reconstruction, reconstructions, retain_graph=True)
            weights = {}
            for name, loss in losses.items():
                (pull,) = torch.autograd.grad(loss, rollouts, retain_graph=True)
                weights[name] = lambdas[name] * output_gradient_weight(target, pull, shares[name])
            total = sum((weights[name] * loss for name, loss in losses.items()), torch.zeros(()))
            return total, {f"weight_{name}": float(weight) for name, weight in weights.items()}
        total = sum((lambdas[name] * loss for name, loss in losses.items() if name == "reward"), torch.zeros(()))
        if "gan" not in losses:
            return total, {}
        plain = -self.nets.discriminator(self._noisy(reconstructions, draw)).mean()
        weight = adaptive_weight(reconstruction, plain, self.nets.online.last_layer)
        ratio = params.adversarial_ratio
        total = total + lambdas["gan"] * ratio * losses["gan"] + params.lambda_reconstruction * ratio * weight * plain
        return total, {"weight_adaptive": float(weight)}

    def state(self) -> dict[str, Tensor]:
        """Optimiser moments of both networks and the LeCAM averages."""
        return {
            **optimizer_tensors(self.optimizer, self.named),
            **optimizer_tensors(self.judge_optimizer, self.judges),
            "lecam.real": self.lecam_real.clone(),
            "lecam.fake": self.lecam_fake.clone(),
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue where `state` was taken; KeyError names what is missing."""
        load_optimizer_tensors(self.optimizer, self.named, tensors)
        if any(name.startswith("discriminator.") for name in tensors):  # Adam has no moments before its first step
            load_optimizer_tensors(self.judge_optimizer, self.judges, tensors)
        self.lecam_real, self.lecam_fake = (
            tensors[f"lecam.{kind}"].to(self.device).clone() for kind in ("real", "fake")
        )
