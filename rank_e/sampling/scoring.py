"""Scoring given tokens under the distribution that `sample` draws from, for training.

A minibatch's logits are by far the largest thing that a policy computes (16,384 of them for each of XL's tokens). They
are needed for one number a token, so they exist for a part of the positions at a time, and the backward pass computes
each part again: between the two only the hidden rows are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rank_e.backbones.protocol import PolicyModel
from rank_e.sampling import positions_at_once
from rank_e.sampling.distribution import SamplingConfig, log_distribution, pick
from rank_e.sampling.sampler import branch_rows

TokenValues = Callable[[Tensor, Tensor], Tensor]
"""Logits [branches * N, M, V] and tokens int64 [N, M] -> one differentiable number for each token [N, M]."""


def score(
    policy: PolicyModel,
    text: Tensor,
    mask: Tensor,
    tokens: Tensor,
    config: SamplingConfig,
    guided: bool = True,
    owners: Tensor | None = None,
    checkpointing: bool = False,
    fast: bool = False,
) -> Tensor:
    """Teacher-forced log-probabilities float32 [N, L] of tokens int64 [N, L]; differentiable.

    `guided`: under the distribution that `sample` draws from with this config, gradient through both
    branches, one forward of 2 N rows. Otherwise the conditional softmax at the config's temperature, without
    guidance or filters. Filters follow the current logits, but the scored token always belongs to their
    support: equal to sampling before an update, finite after it. `owners` (int64 [N]): the prompt of each row
    of tokens, so that each prompt's text runs once; without it row i belongs to prompt i. Inputs may lie on any
    device; the result lies on the policy's.
    """
    settings = config if guided else SamplingConfig(temperature=config.temperature)
    device = policy.device
    owners = torch.arange(len(tokens), device=device) if owners is None else owners.to(device)
    text, mask, tokens = text.to(device), mask.to(device).bool(), tokens.to(device)
    prefix = branch_rows(policy, text, mask, owners, settings, checkpointing)
    hidden = policy.hidden(prefix, tokens.repeat(settings.branches, 1), checkpointing, fast)
    return by_parts(policy, hidden, tokens, lambda logits, part: pick(log_distribution(logits, settings, part), part))


def by_parts(policy: PolicyModel, hidden: Tensor, tokens: Tensor, values_of: TokenValues) -> Tensor:
    """values_of(policy.logits(hidden), tokens) [N, L], of at most LOGITS_AT_ONCE logits at a time; differentiable once.

    hidden [branches * N, L, dim], tokens int64 [N, L]. Parts are ranges of positions, so both branches of a token lie
    in the same one. What fits in one part is computed plainly: in the backward pass all of it would be there again.
    """
    size = positions_at_once(len(hidden), policy.vocab_size)
    if size >= hidden.shape[1]:
        return values_of(policy.logits(hidden), tokens)

    def part_of(rows: Tensor, part: Tensor) -> Tensor:
        return values_of(policy.logits(rows), part)

    weights = [weight for weight in policy.head_parameters() if weight.requires_grad]
    found: Tensor = _ByParts.apply(part_of, size, hidden, tokens, *weights)
    return found


class _ByParts(torch.autograd.Function):
    """part_of(hidden rows, tokens) over ranges of `size` positions; each is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, part_of: TokenValues, size: int, hidden: Tensor, tokens: Tensor, *weights: Tensor) -> Tensor:
        ctx.part_of, ctx.size = part_of, size
        kind = hidden.device.type
        ctx.autocast = {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }
        ctx.save_for_backward(hidden, tokens, *weights)
        pairs = zip(hidden.split(size, 1), tokens.split(size, 1), strict=True)
        return torch.cat([part_of(rows, part) for rows, part in pairs], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, tokens, *weights = ctx.saved_tensors
        # Sums over parts are float32, as a product over all positions sums them; they are rounded once, at the end.
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        rows = torch.empty_like(hidden)
        parts = zip(*(x.split(ctx.size, 1) for x in (hidden, tokens, gradient, rows)), strict=True)
        for part, chosen, upstream, out in parts:
            leaf = part.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                values = ctx.part_of(leaf, chosen)
            found, *others = torch.autograd.grad(values, (leaf, *weights), upstream)
            out.copy_(found)
            for total, other in zip(sums, others, strict=True):
                total += other
        rounded = [total.to(weight.dtype) for total, weight in zip(sums, weights, strict=True)]
        return None, None, rows, None, *rounded
