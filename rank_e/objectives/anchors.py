"""What keeps the decoder on the manifold of real images, and the weights (RankE, arXiv 2605.21195)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def adaptive_weight(gradient_reconstruction: Tensor, gradient_adversarial: Tensor) -> Tensor:
    """VQGAN's weight (arXiv 2012.09841, eq. 7): |grad rec| / (|grad adv| + 1e-4) at the last layer, in [0, 1e4].

    The result carries no gradient.
    """
    return (gradient_reconstruction.norm() / (gradient_adversarial.norm() + 1e-4)).clamp(0.0, 1e4).detach()


def output_gradient_weight(gradient_reconstruction: Tensor, gradient_adversarial: Tensor, rho: float) -> Tensor:
    """The weight w with |w g_adv| = rho |g_rec| at the decoder's output (rho >= 0); 0 if g_adv is 0.

    The adversarial term keeps its share however strong or weak the discriminator is. Carries no gradient.
    """
    reconstruction, adversarial = gradient_reconstruction.norm(), gradient_adversarial.norm()
    vanished = adversarial == 0
    return torch.where(vanished, 0.0, rho * reconstruction / torch.where(vanished, 1.0, adversarial)).detach()


def consistency(perceptual: Callable[[Tensor, Tensor], Tensor], new: Tensor, frozen: Tensor) -> Tensor:
    """L_consist = perceptual(D(z_hat), D_EMA(z_hat)), same tokens; no gradient to the frozen side."""
    return perceptual(new, frozen.detach()).mean()
