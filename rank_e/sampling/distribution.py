"""The distribution that is sampled and scored: guidance, temperature and filters of a policy's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rank_e.errors import RankEError
from rank_e.sampling.filters import filter_logits, guide


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


def log_distribution(logits: Tensor, config: SamplingConfig, always: Tensor | None = None) -> Tensor:
    """Logits [branches * N, ..., V] -> log-probabilities [N, ..., V] of the sampled distribution."""
    if config.branches == 2:
        conditional, unconditional = logits.chunk(2)
        logits = guide(conditional, unconditional, config.guidance)
    return filter_logits(logits, config.temperature, config.top_k, config.top_p, always).log_softmax(-1)


def pick(distribution: Tensor, tokens: Tensor) -> Tensor:
    """Values [...] of distribution [..., V] at tokens int64 [...]."""
    return distribution.gather(-1, tokens[..., None]).squeeze(-1)
