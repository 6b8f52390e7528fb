"""The layers of LlamaGen's transformer, each in three forms: text rows, image rows together, one image row.

Rotary positions turn image rows. For text rows LlamaGen's rotation table is *zero*: queries and keys of the
text vanish, so a text row takes the causal mean of the valid values, and an image row sees the whole prefix
as one slot with key 0, value = that mean, and score log(n) for n valid rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rank_e.backbones.decoding.slots import LayerCache


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs of x [..., head_dim] by unit numbers; same type and shape as x.

    rotation is complex [..., head_dim / 2], or real [..., head_dim / 2, 2], of which a compiler makes one kernel: the
    products and sums are the same.
    """
    if not rotation.is_complex():
        return _rotate_in_reals(x, rotation)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


def _rotate_in_reals(x: Tensor, rotation: Tensor) -> Tensor:
    (first, second), (cosine, sine) = x.float().unflatten(-1, (-1, 2)).unbind(-1), rotation.unbind(-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def text(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [P, T, dim], weights [P, T, T] (rows sum to 1) -> means of values [P, T, dim], before `wo`."""
        return weights @ F.linear(x, self.wqkv.weight[2 * x.shape[-1] :])

    def image(self, x: Tensor, text_value: Tensor, rotation: Tensor, bias: Tensor) -> Tensor:
        """Image rows x [N, M, dim] -> [N, M, dim], before the residual.

        text_value [N, dim], rotation [M, 2 heads, head_dim / 2] or the same in reals, bias [N, 1, M, M + 1].
        """
        n, m, dim = x.shape
        qkv = self.wqkv(x).view(n, m, 3 * self.heads, -1)
        turned = rotate(qkv[:, :, : 2 * self.heads], rotation)
        query, key = turned.transpose(1, 2).chunk(2, dim=1)
        slot = text_value.view(n, 1, self.heads, -1)
        key = F.pad(key, (0, 0, 1, 0))
        value = torch.cat([slot, qkv[:, :, 2 * self.heads :]], dim=1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.wo(mixed.transpose(1, 2).reshape(n, m, dim))

    def step(self, x: Tensor, rotation: Tensor, cache: LayerCache) -> Tensor:
        """One image row x [N, dim]; rotation [2 heads, head_dim / 2, 2], the softmax scale on the queries' half."""
        qkv = self.wqkv(x).view(len(x), 3 * self.heads, -1)
        both, value = qkv.split([2 * self.heads, self.heads], dim=1)
        turned = rotate(both, torch.view_as_complex(rotation) if x.is_cpu else rotation)
        query, key = turned.chunk(2, dim=1)
        return self.wo(cache.attend(query, key, value).reshape(x.shape))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(dim, heads), FeedForward(dim, hidden)
        self.attention_norm, self.ffn_norm = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def text(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [P, T, dim] -> (rows after this block, mean value of all valid rows [P, dim])."""
        mixed = self.attention.text(self.attention_norm(x), weights)
        x = x + self.attention.wo(mixed)
        return x + self.feed_forward(self.ffn_norm(x)), mixed[:, -1]

    def image(self, x: Tensor, text_value: Tensor, rotation: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention.image(self.attention_norm(x), text_value, rotation, bias)
        return x + self.feed_forward(self.ffn_norm(x))

    def step(self, x: Tensor, rotation: Tensor, cache: LayerCache) -> Tensor:
        x = x + self.attention.step(self.attention_norm(x), rotation, cache)
        return x + self.feed_forward(self.ffn_norm(x))
