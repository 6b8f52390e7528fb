"""Stage 1, latent ranking: the policy learns from how its rollouts rank among themselves (GRPO), decoder fixed.

RankE (arXiv 2605.21195), stage 1. Rollouts are scored under the distribution they were sampled from, so the
ratio is exactly 1 before the first update; the released reference scores another distribution and starts off-policy.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rank_e.backbones.protocol import PolicyModel
from rank_e.config import PolicyParams
from rank_e.errors import RankEError
from rank_e.objectives.grpo import k2_kl, policy_loss
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.scoring import score
from rank_e.seeds import generator
from rank_e.training.masters import Masters
from rank_e.training.trained_policy import TrainedPolicy
from rank_e.training.update import UpdateState

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
    """GRPO over one round's rollouts: `epochs` passes in minibatches, each a function of (seed, round, epoch).

    An `Update`: a step is a minibatch. Call `prepare` between loading the round's first weights and the first step.
    """

    first_step = 0

    def __init__(
        self,
        online: PolicyModel,
        average: PolicyModel,
        base: PolicyModel | None,
        rollouts: Rollouts,
        params: PolicyParams,
        sampling: SamplingConfig,
        seed: int,
        round_id: int,
        steps_before: int,
        fast: bool = False,
    ) -> None:
        """online is trained; average is its EMA; base is the fixed initial policy, None unless `params.reads_base`;
        steps_before counts the updates of earlier rounds; fast: on CUDA half precision runs compiled layers."""
        self.fast = fast
        if params.reads_base and base is None:
            raise RankEError("policy: no base to anchor to; give the initial policy, or set policy.kl_coefficient to 0")
        self.online, self.average = online, average
        anchored = params.kl_coefficient > 0
        self.reference = (base if params.reads_base else average) if anchored else None
        self.rollouts, self.params, self.sampling = rollouts.to(online.device), params, sampling
        self.guided = params.scoring == "guided"
        self.steps_before = steps_before
        masters, averages = Masters(online.named_parameters()), Masters(average.named_parameters())
        self.trained = TrainedPolicy("policy", masters, averages, params)
        epochs = [
            torch.randperm(len(rollouts.tokens), generator=generator(seed, "policy", round_id, epoch))
            for epoch in range(params.epochs)
        ]
        # On the device from here on: inside a step nothing moves between devices.
        self.minibatches = [rows for epoch in epochs for rows in epoch.to(online.device).split(params.minibatch_size)]
        self.steps = len(self.minibatches)
        self.old = self.rollouts.log_probs.clone()
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
            fast=self.fast,
        )

    @torch.no_grad()
    def _anchor(self, rows: Tensor) -> Tensor | None:
        """Log-probabilities [n, L] by the reference; None where nothing is anchored."""
        if self.reference is None:
            return None
        # In a first round the rollouts are the reference's own: `prepare` has its score.
        return self.old[rows] if self.starts_from_reference else self._score(self.reference, rows)

    @torch.no_grad()
    def prepare(self) -> dict[str, float]:
        """Find the ratio's denominator: each rollout's log-probabilities by the policy that sampled it.

        Under guided scoring in float32 the sampler's own differ from them by rounding alone. Then only the first
        minibatch is scored, so that its ratio is exactly 1 and the gap is known; otherwise every rollout is. Returns
        the largest gap between the two among the scored ones, and the mean one. Under guided scoring they are the same
        distribution, and a gap beyond rounding means that the rollouts are another policy's: an error.
        """
        self.online.eval()
        fixed = None if self.reference is self.average else self.reference
        self.starts_from_reference = fixed is not None and _equal(self.online, fixed)
        full = all(weight.dtype == torch.float32 for _, weight in self.online.named_parameters())
        exact = full and not torch.is_autocast_enabled(self.old.device.type)
        per_epoch = len(self.minibatches) // self.params.epochs
        scored = torch.cat(self.minibatches[: 1 if exact and self.guided else per_epoch])
        for rows in scored.split(self.params.minibatch_size):
            for microbatch in rows.split(self.params.microbatch_size):  # as `step` scores them
                # With a graph as in `step`: compiled layers round differently where they keep nothing for it.
                with torch.enable_grad():
                    self.old[microbatch] = self._score(self.online, microbatch).detach()
        gaps = (self.old[scored] - self.rollouts.log_probs[scored]).abs()
        largest, mean = gaps.max().item(), gaps.mean().item()
        gap, allowed = (largest, SAMPLER_TOLERANCE) if exact else (mean, HALF_PRECISION_TOLERANCE)
        if self.guided and not gap < allowed:
            raise RankEError(
                f"policy: scored and sampled log-probabilities differ by {gap:.3g} (> {allowed}): "
                "the rollouts were not sampled by this policy; reproduce the rollouts stage"
            )
        return {"sampler_gap": largest, "sampler_gap_mean": mean}

    def step(self, index: int) -> dict[str, float]:
        """Minibatch `index` of this round: one AdamW update and, when due, one EMA update.

        Returns means over the minibatch: loss, kl (nats; none without an anchor), ratio_deviation (the largest
        |ratio - 1|), clip_fraction, reward; and grad_norm (before clipping). RankEError for a gradient that is not
        finite.
        """
        rows, params = self.minibatches[index], self.params
        kls, ratios = [], []

        def loss_of(microbatch: Tensor) -> Tensor:
            # Losses are means over rollouts: shares make the sum the minibatch's mean.
            share = len(microbatch) / len(rows)
            old, anchor = self.old[microbatch], self._anchor(microbatch)
            new = self._score(self.online, microbatch)
            loss = policy_loss(new, old, self.rollouts.advantages[microbatch, None], params.clip_epsilon)
            ratios.append((new.detach() - old).exp())
            if anchor is not None:
                kl = k2_kl(new, anchor)
                kls.append((kl.detach(), share))
                loss = loss + params.kl_coefficient * kl
            return loss * share

        loss = self.trained.accumulate(rows, loss_of)
        norm = self.trained.step(self.steps_before + index)
        deviation = (torch.cat(ratios) - 1).abs()
        return {
            "loss": loss,
            **({"kl": sum(kl.item() * share for kl, share in kls)} if kls else {}),
            "ratio_deviation": deviation.max().item(),
            "clip_fraction": (deviation > params.clip_epsilon).float().mean().item(),
            "reward": self.rollouts.rewards[rows].mean().item(),
            "grad_norm": norm,
        }

    def state(self) -> UpdateState:
        """online, ema and optimizer, float32."""
        return self.trained.state()

    def load(self, state: UpdateState) -> None:
        """Go on from a `state()`, of this round or of the one before; RankEError names what is missing."""
        self.trained.load(state)


def _equal(a: PolicyModel, b: PolicyModel) -> bool:
    """Whether two policies of one architecture hold the same weights."""
    pairs = zip(a.named_parameters(), b.named_parameters(), strict=True)
    return all(torch.equal(weight, other) for (_, weight), (_, other) in pairs)
