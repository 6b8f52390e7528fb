"""The token loop of sampling: choose a token, feed it, predict the next; on CUDA captured as a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rank_e.backbones.protocol import PolicyModel, PrefixRows
from rank_e.sampling.distribution import SampledTokens, SamplingConfig, log_distribution, pick
from rank_e.sampling.filters import cumulative_sum

WARM_UPS = 2
"""Steps before a capture: libraries allocate and compile what a graph may not."""


def can_capture(device: torch.device) -> bool:
    """Whether steps on this device can be captured as a graph."""
    return device.type == "cuda"


class TokenLoop:
    """Buffers for n samples of L tokens, a key-value cache, and what turns one position into the next."""

    def __init__(
        self, policy: PolicyModel, prefix: PrefixRows, config: SamplingConfig, greedy: bool, fast: bool
    ) -> None:
        """For batches of `prefix`'s size; nothing is sampled yet."""
        self.policy, self.config, self.greedy = policy, config, greedy
        device, self.count = policy.device, len(prefix.hidden) // config.branches
        shape = policy.length, self.count
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(shape, device=device)
        self.uniforms = torch.zeros(shape, dtype=torch.float64, device=device)
        self.cache: Any = policy.cache(prefix, fast)
        self.graph = self._capture(prefix) if fast and can_capture(device) else None

    @property
    def captured(self) -> bool:
        return self.graph is not None

    def refill(self, prefix: PrefixRows, count: int) -> bool:
        """Make ready for another batch of `count` samples; False where it does not fit."""
        return count == self.count and self.policy.refill(self.cache, prefix)

    def run(self, prefix: PrefixRows, uniforms: Tensor | None) -> SampledTokens:
        """Sample the batch that the cache was filled with; uniforms float64 [n, L], or None for greedy."""
        if uniforms is not None:
            self.uniforms.copy_(uniforms.T)
        self._choose(self.policy.logits(prefix.hidden))
        for _ in range(self.policy.length - 1):
            if self.graph is None:
                self._step()
            else:
                self.graph.replay()
        return SampledTokens(self.tokens.T, self.log_probs.T)

    def _step(self) -> None:
        """Feed the token at the cache's position and choose the next one."""
        token = self.cache.position.read(self.tokens)
        self._choose(self.policy.step(token.repeat(self.config.branches), self.cache))

    def _choose(self, logits: Tensor) -> None:
        """Choose the token at the cache's position from its logits [branches * n, V]."""
        position = self.cache.position
        distribution = log_distribution(logits, self.config)
        token = distribution.argmax(-1) if self.greedy else _inverse_cdf(distribution, position.read(self.uniforms))
        position.write(self.tokens, token)
        position.write(self.log_probs, pick(distribution, token))

    def _capture(self, prefix: PrefixRows) -> torch.cuda.CUDAGraph:
        """One step as a graph; the cache is as it was afterwards."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._step()
                self.policy.refill(self.cache, prefix)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.policy.refill(self.cache, prefix)
        return graph


def _inverse_cdf(distribution: Tensor, uniform: Tensor) -> Tensor:
    """The first token (int64 [n]) whose cumulative probability in vocabulary order exceeds uniform [n]."""
    mass = distribution.double().exp_()
    cumulative = cumulative_sum(mass)
    # The total is 1 only up to rounding; scaled by it, no uniform reaches excluded tokens at the end.
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
