"""L_D, the decoder's objective (RankE, arXiv 2605.21195, stage 2): its terms, their weights and their sum.

L_D = lambda_d L_reward + lambda_g L_RankGAN  (alignment)  +  lambda_r L_recon + lambda_c L_consist  (manifold anchor)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rank_e.config import DecoderParams
from rank_e.objectives.anchors import adaptive_weight, output_gradient_weight

Term = Literal["reward", "rank_gan", "adversarial", "reconstruction", "consistency"]
"""L_reward, L_RankGAN, L_consist, and the paper's L_recon in two: what the discriminator says of reconstructions
(adversarial, in the rule "adaptive" alone), and pixels and perception (reconstruction)."""
Weights = Mapping[Term, float | Tensor]
"""What each term weighs: a number, or a scalar without a gradient."""

OFF = torch.zeros(())


def decoder_loss(terms: Mapping[Term, Tensor], weights: Weights) -> Tensor:
    """L_D, a scalar: the weighted sum of its terms, scalars; one that is not there is switched off."""

    def weighted(name: Term) -> Tensor:
        return weights[name] * terms[name] if name in terms else OFF

    alignment = weighted("reward") + weighted("rank_gan")
    return alignment + (weighted("adversarial") + weighted("reconstruction")) + weighted("consistency")


def gradient_norm_weights(
    reconstruction: Tensor, reward: Tensor | None, rank_gan: Tensor | None, params: DecoderParams
) -> tuple[Weights, dict[str, float]]:
    """Each alignment term's gradient at the decoder's output has a fixed share of the reconstruction's.

    Given are the gradients of the terms there, over the whole batch; None for a term that is off. Returns the weights,
    and what the log says of them.
    """
    measured: dict[str, float] = {}

    def weight(name: str, gradient: Tensor | None, share: float | None) -> float | Tensor:
        if gradient is None or share is None:
            return 0.0
        found = output_gradient_weight(reconstruction, gradient, share)
        measured[f"weight_{name}"] = float(found)
        return found

    weights: Weights = {
        "reward": weight("reward", reward, params.reward_ratio),
        "rank_gan": weight("gan", rank_gan, params.adversarial_ratio),
        "adversarial": 0.0,
        "reconstruction": params.lambda_reconstruction,
        "consistency": params.lambda_consistency,
    }
    return weights, measured


def adaptive_weights(
    reconstruction: Tensor | None, adversarial: Tensor | None, params: DecoderParams
) -> tuple[Weights, dict[str, float]]:
    """The paper's: plain lambdas, and VQGAN's last-layer rule for the adversarial term on reconstructions.

    Given are the gradients of these two terms at the decoder's last weight, over the whole batch; None without a
    discriminator. Returns the weights, and what the log says of them.
    """
    pull: float | Tensor = 0.0
    measured: dict[str, float] = {}
    if reconstruction is not None and adversarial is not None:
        weight = adaptive_weight(reconstruction, adversarial)
        pull = params.lambda_reconstruction * params.adversarial_ratio * weight
        measured["weight_adaptive"] = float(weight)
    weights: Weights = {
        "reward": params.lambda_reward or 0.0,
        "rank_gan": (params.lambda_gan or 0.0) * params.adversarial_ratio,
        "adversarial": pull,
        "reconstruction": params.lambda_reconstruction,
        "consistency": params.lambda_consistency,
    }
    return weights, measured
