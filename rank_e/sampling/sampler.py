"""Sampling from a policy with a key-value cache, and the distribution that `scoring` scores too.

The randomness of sample i is its own: L uniforms from a generator seeded by seeds[i], each turned into a
token by the inverse of the cumulative distribution. Tokens therefore do not depend on batch size, order or
device (up to float noise of the logits). Scoring repeats guidance, temperature and filters, so that
exp(score - log_prob) is 1 before an update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rank_e.backbones.protocol import PolicyModel, PrefixRows
from rank_e.errors import RankEError
from rank_e.sampling.filters import cumulative_sum, filter_logits, guide


@dataclass(frozen=True)
class SamplingConfig:
    """guidance >= 0 (1: conditional branch alone), temperature > 0, top_k >= 0 (0: all), 0 < top_p <= 1."""

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (self.guidance >= 0 and self.temperature > 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise RankEError(f"{self}: guidance >= 0, temperature > 0, top_k >= 0 and 0 < top_p <= 1 are allowed")

    @property
    def branches(self) -> int:
        return 1 if self.guidance == 1.0 else 2


class SampledTokens(NamedTuple):
    """tokens int64 [N, L]; log_probs float32 [N, L] under the guided, tempered, filtered distribution."""

    tokens: Tensor
    log_probs: Tensor


@torch.no_grad()
def sample(
    policy: PolicyModel,
    text: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    config: SamplingConfig,
    batch_size: int,
    repeats: int = 1,
    greedy: bool = False,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> SampledTokens:
    """Draw `repeats` samples for each prompt.

    text [P, T, C] or [P, T] left-padded and mask bool [P, T]; seeds: P * repeats ints, prompt-major (sample i belongs
    to prompt i // repeats). `batch_size` samples run at once (with guidance, twice as many rows). `greedy`
    takes the likeliest token instead and ignores the seeds' values. `progress` wraps the loop over batches.
    The result lies on the policy's device.
    """
    if batch_size < 1 or len(seeds) != len(text) * repeats:
        raise RankEError(
            f"sample: {len(seeds)} seeds for {len(text)} prompts x {repeats}, batch_size {batch_size}; "
            "give one seed for each sample and a batch_size >= 1"
        )
    device, length = policy.device, policy.length
    text, mask = text.to(device), mask.to(device).bool()
    batches = []
    for start in progress(range(0, len(seeds), batch_size)):
        stop = min(start + batch_size, len(seeds))
        uniforms = None if greedy else _uniforms(seeds[start:stop], length).to(device)
        first, last = start // repeats, (stop - 1) // repeats + 1
        owners = torch.arange(start, stop, device=device) // repeats - first
        prefix = branch_rows(policy, text[first:last], mask[first:last], owners, config)
        batches.append(_sample_batch(policy, prefix, uniforms, config))
    if not batches:
        empty = torch.empty(0, length, device=device)
        return SampledTokens(empty.long(), empty)
    return SampledTokens(torch.cat([b.tokens for b in batches]), torch.cat([b.log_probs for b in batches]))


def branch_rows(
    policy: PolicyModel,
    text: Tensor,
    mask: Tensor,
    owners: Tensor,
    config: SamplingConfig,
    checkpointing: bool = False,
) -> PrefixRows:
    """Prefix rows of N samples (then of their N unconditional twins), each different text computed once."""
    if config.branches == 1:
        return policy.prefix(text, mask, None, checkpointing).rows(owners)
    # The unconditional prefix depends on the prompt's mask alone: as many rows as there are different masks.
    masks, which = torch.unique(mask, dim=0, return_inverse=True)
    rows = torch.cat([text, text.new_zeros(len(masks), *text.shape[1:])])
    unconditional = torch.arange(len(rows), device=text.device) >= len(text)
    prefix = policy.prefix(rows, torch.cat([mask, masks]), unconditional, checkpointing)
    return prefix.rows(torch.cat([owners, len(text) + which[owners]]))


def _sample_batch(
    policy: PolicyModel, prefix: PrefixRows, uniforms: Tensor | None, config: SamplingConfig
) -> SampledTokens:
    """Sample all rows of one batch together; uniforms float64 [n, L], or None for greedy."""
    n, length = len(prefix.hidden) // config.branches, policy.length
    cache, logits = policy.cache(prefix), policy.logits(prefix.hidden)
    tokens = torch.empty(n, length, dtype=torch.int64, device=logits.device)
    log_probs = torch.empty(n, length, device=logits.device)
    for position in range(length):
        distribution = log_distribution(logits, config)
        token = distribution.argmax(-1) if uniforms is None else _inverse_cdf(distribution, uniforms[:, position, None])
        tokens[:, position] = token
        log_probs[:, position] = pick(distribution, token)
        if position + 1 < length:
            logits = policy.step(token.repeat(config.branches), cache, position)
    return SampledTokens(tokens, log_probs)


def log_distribution(logits: Tensor, config: SamplingConfig, always: Tensor | None = None) -> Tensor:
    """Logits [branches * N, ..., V] -> log-probabilities [N, ..., V] of the sampled distribution."""
    if config.branches == 2:
        conditional, unconditional = logits.chunk(2)
        logits = guide(conditional, unconditional, config.guidance)
    return filter_logits(logits, config.temperature, config.top_k, config.top_p, always).log_softmax(-1)


def _inverse_cdf(distribution: Tensor, uniform: Tensor) -> Tensor:
    """The first token (int64 [n]) whose cumulative probability in vocabulary order exceeds uniform [n, 1]."""
    mass = distribution.double().exp_()
    cumulative = cumulative_sum(mass)
    # The total is 1 only up to rounding; scaled by it, no uniform reaches excluded tokens at the end.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)


def pick(distribution: Tensor, tokens: Tensor) -> Tensor:
    """Values [...] of distribution [..., V] at tokens int64 [...]."""
    return distribution.gather(-1, tokens[..., None]).squeeze(-1)


def _uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """float64 [n, length] in [0, 1 - 2^-40], row i from its own CPU generator seeded by seeds[i]."""
    generator, rows = torch.Generator(), torch.empty(len(seeds), length, dtype=torch.float64)
    for row, seed in zip(rows, seeds, strict=True):
        torch.rand(length, dtype=torch.float64, generator=generator.manual_seed(seed), out=row)
    return rows.clamp_(max=1.0 - 2.0**-40)
