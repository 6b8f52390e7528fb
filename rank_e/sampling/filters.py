"""From a policy's logits to the distribution that is sampled: guidance, temperature, top-k, top-p."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of logits [..., V]: u + scale (c - u). Scale 1 is c itself, 0 is u."""
    return torch.lerp(unconditional, conditional, scale)


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, always: Tensor | None = None
) -> Tensor:
    """Divide logits [..., V] by the temperature (> 0) and set what top-k, then top-p exclude to -inf.

    top_k 0 and top_p 1 keep everything. Ties with the k-th logit stay. Top-p keeps the likeliest tokens until
    their mass, under the top-k distribution, reaches p; the likeliest stays always. Token `always` (int64
    [...]) is never excluded.
    """
    if temperature != 1.0:
        logits = logits / temperature
    keep = None
    if 0 < top_k < logits.shape[-1]:
        keep = logits >= logits.topk(top_k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    if top_p < 1.0:
        allowed = logits if keep is None else logits.masked_fill(~keep, float("-inf"))
        ordered, order = allowed.detach().sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(-1)
        inside = cumulative_sum(mass) - mass < top_p  # mass of the likelier tokens alone
        inside = torch.zeros_like(inside).scatter(-1, order, inside)
        keep = inside if keep is None else keep & inside
    if keep is None:
        return logits
    if always is not None:
        keep = keep.scatter(-1, always[..., None], True)
    return logits.masked_fill(~keep, float("-inf"))


def cumulative_sum(values: Tensor) -> Tensor:
    """Cumulative sums of values [..., V] along V, the same bits every time: CUDA's own are not deterministic."""
    return values.cumsum(-1) if values.device.type == "cpu" else cumulative_by_products(values)


def cumulative_by_products(values: Tensor, block: int = 128) -> Tensor:
    """Cumulative sums of values [..., V] along V by triangular matrices."""
    blocks = F.pad(values, (0, -values.shape[-1] % block)).unflatten(-1, (-1, block))
    inside = blocks @ values.new_ones(block, block).triu()
    count = blocks.shape[-2]
    before = inside[..., -1] @ values.new_ones(count, count).triu(1)
    return (inside + before[..., None]).flatten(-2)[..., : values.shape[-1]].contiguous()
