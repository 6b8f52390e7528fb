"""Stage 1, latent ranking: the policy's objective (RankE, arXiv 2605.21195; GRPO, arXiv 2402.03300)."""

from __future__ import annotations

import torch
from torch import Tensor

from rank_e.errors import RankEError


def group_advantages(rewards: Tensor, minimum_std: float = 1e-4, clamp: float = 5.0) -> Tensor:
    """A_i = (r_i - mean) / std inside each group: rewards [P, G] -> advantages [P, G] in [-clamp, clamp].

    Unbiased std. A group whose std is below `minimum_std` (all rollouts alike) ranks nothing and gets 0.
    Raises RankEError for groups of one or for a reward that is not finite.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise RankEError(f"group_advantages: rewards {tuple(rewards.shape)}; give [prompts, group size >= 2]")
    require_finite("group_advantages", rewards)
    std = rewards.std(dim=1, keepdim=True)
    ranked = (rewards - rewards.mean(dim=1, keepdim=True)) / std.clamp_min(minimum_std)
    return torch.where(std < minimum_std, 0.0, ranked).clamp(-clamp, clamp)


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """Clipped surrogate: minus the mean over tokens of min(rho A, clip(rho, 1 - eps, 1 + eps) A).

    rho = exp(new - old); new, old: log-probabilities [N, L] of the sampled tokens; advantages [N] or [N, 1],
    one for all tokens of a rollout.
    """
    weight = advantages.reshape(len(new), 1)
    ratio = (new - old).exp()
    return -torch.minimum(ratio * weight, ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * weight).mean()


def k2_kl(new: Tensor, reference: Tensor) -> Tensor:
    """The anchor Omega_theta: KL estimator k2, the mean of (log pi - log pi_ref)^2 / 2 over [N, L]."""
    return 0.5 * (new - reference).square().mean()


def require_finite(name: str, rewards: Tensor) -> None:
    """Raise RankEError naming the first reward that is NaN or infinite: never a silent zero."""
    bad = (~rewards.isfinite()).nonzero()
    if len(bad):
        raise RankEError(f"{name}: reward {bad[0].tolist()} is {rewards[tuple(bad[0])].item()}; fix the reward model")
