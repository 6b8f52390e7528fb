"""Stage 1, latent ranking: the policy learns from how its rollouts rank among themselves (GRPO), decoder fixed.

RankE (arXiv 2605.21195), stage 1. Rollouts are scored under the distribution they were sampled from, so the
ratio is exactly 1 before the first update; the released reference scores another distribution and starts off-policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rank_e.backbones.protocol import PolicyModel
from rank_e.config import PolicyParams
from rank_e.errors import RankEError
from rank_e.objectives.grpo import k2_kl, policy_loss
from rank_e.sampling.sampler import SamplingConfig, score
from rank_e.seeds import generator
from rank_e.training.ema import ema_update, load_optimizer_tensors, optimizer_tensors
from rank_e.training.masters import Masters, optimizer_groups

# Sampling walks a cache and scoring runs in one pass: equal up to rounding. In float32 every log-probability is
# far below this; in a half-precision type rounding moves single tokens much further, so there the mean is held.
SAMPLER_TOLERANCE = 1e-3
HALF_PRECISION_TOLERANCE = 0.1


@dataclass(frozen=True)
class Rollouts:
    """One round's rollouts, flattened prompt-major: N = P * G.

    text [P, T, C] or [P, T], mask [P, T], tokens [N, L], log_probs [N, L] as sampled, advantages [N], rewards [N].
    """

    text: Tensor
    mask: Tensor
    tokens: Tensor
    log_probs: Tensor
    advantages: Tensor
    rewards: Tensor

    @property
    def group_size(self) -> int:
        return len(self.tokens) // len(self.text)

    def to(self, device: torch.device) -> "Rollouts":
        """The same rollouts on `device`."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


class PolicyUpdate:
    """GRPO over one round's rollouts: `epochs` passes in minibatches, each a function of (seed, round, epoch)."""

    def __init__(
        self,
        online: PolicyModel,
        average: PolicyModel,
        reference: PolicyModel,
        rollouts: Rollouts,
        params: PolicyParams,
        sampling: SamplingConfig,
        seed: int,
        round_id: int,
        updates: int,
    ) -> None:
        """online is trained; average is its EMA; reference is the fixed base (ignored when params.reference is
        "ema"); updates counts the updates of earlier rounds."""
        self.online, self.average = online, average
        self.reference = average if params.reference == "ema" else reference
        self.rollouts, self.params, self.sampling = rollouts.to(online.device), params, sampling
        self.guided = params.scoring == "guided"
        self.updates = updates
        self.masters = Masters(online.named_parameters())
        self.average_masters = Masters(average.named_parameters())
        self.optimizer = torch.optim.AdamW(
            optimizer_groups(self.masters, params.weight_decay),
            lr=params.learning_rate,
            betas=(params.betas[0], params.betas[1]),
        )
        self.minibatches = [
            rows
            for epoch in range(params.epochs)
            for rows in torch.randperm(
                len(rollouts.tokens), generator=generator(seed, "policy", round_id, epoch)
            ).split(params.minibatch_size)
        ]
        self.old = torch.empty_like(self.rollouts.log_probs)
        self.starts_from_reference = False

    def _score(self, policy: PolicyModel, rows: Tensor) -> Tensor:
        """Log-probabilities [n, L] of the rollouts `rows`; each prompt's text runs once."""
        prompts, owners = torch.unique(rows // self.rollouts.group_size, return_inverse=True)
        return score(
            policy,
            self.rollouts.text[prompts],
            self.rollouts.mask[prompts],
            self.rollouts.tokens[rows],
            self.sampling,
            guided=self.guided,
            owners=owners,
            checkpointing=self.params.checkpointing,
        )

    @torch.no_grad()
    def prepare(self) -> dict[str, float]:
        """Score every rollout with the policy that sampled it: the denominator of the ratio.

        Returns the largest gap to the sampled log-probabilities, and the mean one. Under guided scoring the two are
        the same distribution, and a gap beyond rounding means that the rollouts are another policy's: an error.
        """
        self.online.eval()
        self.starts_from_reference = self.reference is not self.average and _equal(self.online, self.reference)
        per_epoch = len(self.minibatches) // self.params.epochs
        for rows in self.minibatches[:per_epoch]:
            for part in rows.split(self.params.microbatch_size):  # as `step` scores them: the ratio is then exactly 1
                self.old[part] = self._score(self.online, part)
        gaps = (self.old - self.rollouts.log_probs).abs()
        largest, mean = gaps.max().item(), gaps.mean().item()
        full = all(p.dtype == torch.float32 for _, p in self.masters.parameters)
        exact = full and not torch.is_autocast_enabled(gaps.device.type)
        gap, allowed = (largest, SAMPLER_TOLERANCE) if exact else (mean, HALF_PRECISION_TOLERANCE)
        if self.guided and not gap < allowed:
            raise RankEError(
                f"policy: scored and sampled log-probabilities differ by {gap:.3g} (> {allowed}): "
                "the rollouts were not sampled by this policy; reproduce the rollouts stage"
            )
        return {"sampler_gap": largest, "sampler_gap_mean": mean}

    def step(self, index: int) -> dict[str, float]:
        """Minibatch `index` of this round: one AdamW update and, when due, one EMA update.

        Gradients are added up over parts of `microbatch_size` rollouts; the parts' size only costs or saves memory.
        """
        rows, params = self.minibatches[index], self.params
        self.optimizer.zero_grad(set_to_none=True)
        losses, kls, ratios = [], [], []
        for part in rows.split(params.microbatch_size):
            share = len(part) / len(rows)  # losses are means over rollouts: shares make the sum the minibatch's mean
            old = self.old[part]
            with torch.no_grad():
                # In a first round the reference drew the rollouts: `prepare` has its score.
                reference = old if self.starts_from_reference else self._score(self.reference, part)
            new = self._score(self.online, part)
            surrogate = policy_loss(new, old, self.rollouts.advantages[part, None], params.clip_epsilon)
            kl = k2_kl(new, reference)
            loss = (surrogate + params.kl_coefficient * kl) * share
            loss.backward()
            self.masters.collect()
            losses.append(loss.item())
            kls.append(kl.item() * share)
            ratios.append((new.detach() - old).exp())
        norm = nn.utils.clip_grad_norm_(self.masters.weights, params.gradient_clip, error_if_nonfinite=True)
        self.optimizer.step()
        self.masters.publish()
        self.updates += 1
        if self.updates % params.ema_every == 0:
            ema_update(dict(self.average_masters.named), dict(self.masters.named), params.ema_decay)
            self.average_masters.publish()
        ratio = torch.cat(ratios)
        return {
            "loss": sum(losses),
            "kl": sum(kls),
            "ratio_deviation": (ratio - 1).abs().max().item(),
            "clip_fraction": ((ratio - 1).abs() > params.clip_epsilon).float().mean().item(),
            "reward": self.rollouts.rewards[rows].mean().item(),
            "grad_norm": norm.item(),
        }

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that moves, float32: online, ema and optimizer."""
        optimizer = optimizer_tensors(self.optimizer, self.masters.named)
        return {"online": self.masters.tensors(), "ema": self.average_masters.tensors(), "optimizer": optimizer}

    def load_weights(self, online: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> None:
        """Go on from float32 weights; RankEError names what is missing."""
        self.masters.load(online)
        self.average_masters.load(average)

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the optimiser's state, as `state` gave it."""
        load_optimizer_tensors(self.optimizer, self.masters.named, tensors)


def _equal(a: PolicyModel, b: PolicyModel) -> bool:
    """Whether two policies of one architecture hold the same weights."""
    pairs = zip(a.named_parameters(), b.named_parameters(), strict=True)
    return all(torch.equal(weight, other) for (_, weight), (_, other) in pairs)
