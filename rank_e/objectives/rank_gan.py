"""Stage 2, pixel ranking: what aligns the decoder (RankE, arXiv 2605.21195). Pure functions."""

from __future__ import annotations

from math import cos, pi

import torch.nn.functional as F
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.objectives.grpo import require_finite


def keep_top(rewards: Tensor, k: int) -> Tensor:
    """Indices int64 [P, k] of the k best of rewards [P, G], best first; equal rewards keep their order."""
    if not 1 <= k <= rewards.shape[1]:
        raise RankEError(f"keep_top: k = {k} of groups of {rewards.shape[1]}; give 1 <= k <= group size")
    require_finite("keep_top", rewards)
    return rewards.sort(dim=1, descending=True, stable=True).indices[:, :k]


def rank_weights(rewards: Tensor, temperature: float) -> Tensor:
    """w_i proportional to exp(r_i / tau) among the kept rewards [P, K] -> [P, K], >= 0, mean 1 in each group.

    Mean 1 keeps the expected gradient that of a plain GAN; tau -> infinity is the plain GAN, K = 1 always is.
    """
    if not temperature > 0:
        raise RankEError(f"rank_weights: temperature {temperature}; give a temperature > 0")
    require_finite("rank_weights", rewards)
    return (rewards / temperature).softmax(dim=1) * rewards.shape[1]


def temperature_at(step: int, start: float, end: float, steps: int) -> float:
    """Rank temperature tau at `step` >= 0: half a cosine from `start` at 0 to `end` at `steps` and after."""
    if step >= steps:
        return end
    return end + (start - end) * 0.5 * (1.0 + cos(pi * step / steps))


def rank_gan_loss(logits_fake: Tensor, weights: Tensor) -> Tensor:
    """L_RankGAN = -mean_i w_i Disc(D(z_hat_i)); Disc averages its patches.

    logits_fake [N, 1, h, w] of the kept rollouts, prompt-major; weights [P, K] or [N], N = P K.
    """
    return -(weights.flatten() * logits_fake.flatten(1).mean(1)).mean()


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Half of mean relu(1 - real) + mean relu(1 + fake); any shapes; 1 for a discriminator that says 0."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def reward_loss(rewards: Tensor, weights: Tensor) -> Tensor:
    """L_reward = -mean_i w_i r_i; differentiable rewards [N] of decodings, weights [P, K] or [N], N = P K."""
    return -(weights.flatten() * rewards.flatten()).mean()


def lecam(logits_real: Tensor, logits_fake: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Tensor:
    """LeCam (arXiv 2104.03310): reals are held near the running fake logit, fakes near the real one.

    Squares of relu(real - ema_fake) and relu(ema_real - fake), each averaged; ema_*: scalars. Scalar >= 0.
    """
    return F.relu(logits_real - ema_fake).square().mean() + F.relu(ema_real - logits_fake).square().mean()
