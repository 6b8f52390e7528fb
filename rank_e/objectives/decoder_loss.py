"""L_D, the decoder's objective (RankE, arXiv 2605.21195, stage 2): its terms, their weights and their sum.

L_D = lambda_d L_reward + lambda_g L_RankGAN  (alignment)  +  lambda_r L_recon + lambda_c L_consist  (manifold anchor)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rank_e.config import DecoderParams
from rank_e.objectives.anchors import adaptive_weight, output_gradient_weight

OFF = torch.zeros(())
"""Stands for a term that is switched off: it weighs 0."""


@dataclass(frozen=True)
class Terms:
    """The terms of L_D of one step, scalars; the paper's L_recon is `reconstruction` and `adversarial` together."""

    reward: Tensor  # L_reward
    rank_gan: Tensor  # L_RankGAN
    adversarial: Tensor  # L_recon: what the discriminator says of reconstructions, in the adaptive rule alone
    reconstruction: Tensor  # L_recon: pixels and perception
    consistency: Tensor  # L_consist


@dataclass(frozen=True)
class TermWeights:
    """What each term weighs: a number, or a scalar without a gradient; measured: what the log says of them."""

    reward: float | Tensor
    rank_gan: float | Tensor
    adversarial: float | Tensor
    reconstruction: float
    consistency: float
    measured: dict[str, float]


def decoder_loss(terms: Terms, weights: TermWeights) -> Tensor:
    """L_D, a scalar: the sum of its four weighted terms."""
    reward, rank_gan = weights.reward * terms.reward, weights.rank_gan * terms.rank_gan
    recon = weights.adversarial * terms.adversarial + weights.reconstruction * terms.reconstruction
    consist = weights.consistency * terms.consistency
    return reward + rank_gan + recon + consist


def gradient_norm_weights(
    terms: Terms, rollouts: Tensor, reconstructions: Tensor, params: DecoderParams
) -> TermWeights:
    """Each alignment term's gradient at the decoder's output has a fixed share of the reconstruction's.

    rollouts, reconstructions: the decoder's outputs, on which the terms depend; the graphs are kept.
    """
    (target,) = torch.autograd.grad(terms.reconstruction, reconstructions, retain_graph=True)
    measured: dict[str, float] = {}

    def weight(name: str, term: Tensor, share: float | None) -> float | Tensor:
        if term is OFF or share is None:
            return 0.0
        (pull,) = torch.autograd.grad(term, rollouts, retain_graph=True)
        found = output_gradient_weight(target, pull, share)
        measured[f"weight_{name}"] = float(found)
        return found

    return TermWeights(
        reward=weight("reward", terms.reward, params.reward_ratio),
        rank_gan=weight("gan", terms.rank_gan, params.adversarial_ratio),
        adversarial=0.0,
        reconstruction=params.lambda_reconstruction,
        consistency=params.lambda_consistency,
        measured=measured,
    )


def adaptive_weights(terms: Terms, last_layer: Tensor, params: DecoderParams) -> TermWeights:
    """The paper's: plain lambdas, and VQGAN's last-layer rule for the adversarial term on reconstructions.

    last_layer: the decoder's last weight, on which the terms depend; the graphs are kept.
    """
    adversarial: float | Tensor = 0.0
    measured = {}
    if terms.adversarial is not OFF:
        weight = adaptive_weight(terms.reconstruction, terms.adversarial, last_layer)
        adversarial = params.lambda_reconstruction * params.adversarial_ratio * weight
        measured["weight_adaptive"] = float(weight)
    return TermWeights(
        reward=params.lambda_reward or 0.0,
        rank_gan=(params.lambda_gan or 0.0) * params.adversarial_ratio,
        adversarial=adversarial,
        reconstruction=params.lambda_reconstruction,
        consistency=params.lambda_consistency,
        measured=measured,
    )
