"""Sampling from a policy with a key-value cache, and the distribution that `scoring` scores too.

The randomness of sample i is its own: L uniforms from a generator seeded by seeds[i], each turned into a
token by the inverse of the cumulative distribution. Tokens therefore do not depend on batch size, order or
device (up to float noise of the logits). Scoring repeats guidance, temperature and filters, so that
exp(score - log_prob) is 1 before an update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rank_e.backbones.protocol import PolicyModel, PrefixRows
from rank_e.errors import RankEError
from rank_e.sampling.distribution import SampledTokens, SamplingConfig
from rank_e.sampling.loop import TokenLoop


class Sampler:
    """Draws samples from one policy, batch after batch, on memory that is allocated once.

    On CUDA with `fast` the token loop is one captured graph, which each token replays, and half precision runs compiled
    kernels; without it the same kernels run one after another. Float32 gives the same bits either way. A CPU has one
    way.
    """

    def __init__(
        self, policy: PolicyModel, config: SamplingConfig, batch_size: int, fast: bool = False, greedy: bool = False
    ) -> None:
        """batch_size samples run at once (with guidance, twice as many rows).

        greedy takes the likeliest token and ignores the seeds' values.
        """
        if batch_size < 1:
            raise RankEError(f"sampling: batch_size {batch_size}; give 1 or more")
        self.policy, self.config, self.batch_size, self.fast, self.greedy = policy, config, batch_size, fast, greedy
        self._loop: TokenLoop | None = None

    @torch.no_grad()
    def __call__(
        self,
        text: Tensor,
        mask: Tensor,
        seeds: Sequence[int],
        repeats: int = 1,
        progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> SampledTokens:
        """Draw `repeats` samples for each prompt.

        text [P, T, C] or [P, T] left-padded and mask bool [P, T]; seeds: P * repeats ints, prompt-major (sample i
        belongs to prompt i // repeats). `progress` wraps the loop over batches. The result lies on the policy's device.
        """
        if len(seeds) != len(text) * repeats:
            raise RankEError(
                f"sampling: {len(seeds)} seeds for {len(text)} prompts x {repeats}; give one seed for each sample"
            )
        device, length = self.policy.device, self.policy.length
        text, mask = text.to(device), mask.to(device).bool()
        tokens = torch.empty(len(seeds), length, dtype=torch.int64, device=device)
        log_probs = torch.empty(len(seeds), length, device=device)
        for start in progress(range(0, len(seeds), self.batch_size)):
            stop = min(start + self.batch_size, len(seeds))
            uniforms = None if self.greedy else _uniforms(seeds[start:stop], length).to(device)
            first, last = start // repeats, (stop - 1) // repeats + 1
            owners = torch.arange(start, stop, device=device) // repeats - first
            found = self._batch(text[first:last], mask[first:last], owners, uniforms)
            tokens[start:stop], log_probs[start:stop] = found.tokens[: len(owners)], found.log_probs[: len(owners)]
        return SampledTokens(tokens, log_probs)

    def _batch(self, text: Tensor, mask: Tensor, owners: Tensor, uniforms: Tensor | None) -> SampledTokens:
        """Samples of prompts `owners` (int64 [n], ascending); valid until the next batch, and maybe more rows.

        A captured loop has a fixed number of rows: the last sample stands in for those that are missing.
        """
        loop = self._loop
        if loop is not None and loop.captured and len(owners) < loop.count:
            spare = loop.count - len(owners)
            owners = torch.cat([owners, owners[-1:].expand(spare)])
            uniforms = None if uniforms is None else torch.cat([uniforms, uniforms[-1:].expand(spare, -1)])
        prefix = branch_rows(self.policy, text, mask, owners, self.config)
        if loop is None or not loop.refill(prefix, len(owners)):
            del loop
            self._loop = None  # its memory goes before the next one's is taken
            loop = self._loop = TokenLoop(self.policy, prefix, self.config, self.greedy, self.fast)
        return loop.run(prefix, uniforms)


def sample(
    policy: PolicyModel,
    text: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    config: SamplingConfig,
    batch_size: int,
    repeats: int = 1,
    greedy: bool = False,
) -> SampledTokens:
    """`Sampler` for a single use."""
    return Sampler(policy, config, batch_size, greedy=greedy)(text, mask, seeds, repeats)


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


def _uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """float64 [n, length] in [0, 1 - 2^-40], row i from its own CPU generator seeded by seeds[i]."""
    generator, rows = torch.Generator(), torch.empty(len(seeds), length, dtype=torch.float64)
    for row, seed in zip(rows, seeds, strict=True):
        torch.rand(length, dtype=torch.float64, generator=generator.manual_seed(seed), out=row)
    return rows.clamp_(max=1.0 - 2.0**-40)
