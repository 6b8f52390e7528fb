"""What the decoder learns from in one round, a step's batch at a time."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rank_e.config import DecoderParams


@dataclass(frozen=True)
class RankedImages:
    """Rollouts with their ranks, and real images.

    tokens int64 [P, G, L], weights [P, G] (rank weights; 0 = not kept), prompts: P texts, reals [R, 3, H, W] in
    [0, 1].
    """

    tokens: Tensor
    weights: Tensor
    prompts: list[str]
    reals: Tensor


@dataclass(frozen=True)
class RankedBatch:
    """One step's rollouts (tokens [n, L], weights [n], n prompts) and real images [m, 3, H, W] with tokens [m, L]."""

    tokens: Tensor
    weights: Tensor
    prompts: list[str]
    reals: Tensor
    real_tokens: Tensor


class RankedBatches:
    """Batches of kept rollouts and of real images, both taken at random with replacement."""

    def __init__(
        self, data: RankedImages, weights: Tensor, real_tokens: Tensor, params: DecoderParams, device: torch.device
    ) -> None:
        """weights [P, G]: those to learn by; real_tokens int64 [R, L]: the real images'. Batches lie on `device`."""
        self.data, self.weights, self.real_tokens = data, weights, real_tokens
        self.params, self.device = params, device
        self.kept = (data.weights > 0).nonzero()

    def batch(self, generator: torch.Generator) -> RankedBatch:
        """rollouts_per_step rollouts and reals_per_step real images."""
        pick = self.kept[torch.randint(len(self.kept), (self.params.rollouts_per_step,), generator=generator)]
        prompt, rollout = pick.unbind(1)
        real = torch.randint(len(self.data.reals), (self.params.reals_per_step,), generator=generator)
        prompts = [self.data.prompts[p] for p in prompt.tolist()]
        tokens, weights = self.data.tokens[prompt, rollout], self.weights[prompt, rollout]
        tensors = (tokens, weights, self.data.reals[real], self.real_tokens[real])
        tokens, weights, reals, real_tokens = (tensor.to(self.device) for tensor in tensors)
        return RankedBatch(tokens, weights, prompts, reals, real_tokens)


def applied_weights(
    weights: Tensor, weighting: Literal["rank", "uniform", "shuffled"], generator: torch.Generator
) -> Tensor:
    """Rank weights [P, G] as they are, or a control: all 1, or the same ones dealt out at random in each group.

    What is not kept (0) stays so.
    """
    kept = weights > 0
    if weighting == "uniform":
        return kept.float()
    if weighting == "shuffled":
        noise = torch.rand(weights.shape, generator=generator)
        order = noise.masked_fill(~kept, 2.0).argsort(dim=1)
        place = kept.float().argsort(dim=1, descending=True, stable=True)
        return torch.zeros_like(weights).scatter(1, place, weights.gather(1, order))
    return weights
