"""The layers of LlamaGen's transformer, each in three forms: text rows, image rows together, one image row.

Rotary positions turn image rows. For text rows LlamaGen's rotation table is *zero*: queries and keys of the
text vanish, so a text row takes the causal mean of the valid values, and an image row sees the whole prefix
as one slot with key 0, value = that mean, and score log(n) for n valid rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Cache:
    """Keys and values of N rows, allocated once; slot 0 is the text, slot i + 1 is image token i.

    keys, values [n_layer, L, N, heads, head_dim]; bias [N, 1, 1, L]: log n on the text slot, else 0; rotation
    [L, 2 heads, head_dim / 2], with the softmax scale on the queries' half; scratch [L, N, heads, head_dim].
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    rotation: Tensor
    scratch: Tensor


def attend_fused(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of a scaled query row [N, H, D] to S slots [S, N, H, D], bias [N, 1, 1, S] -> [N, H, D]."""
    key, value = keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3)
    mixed = F.scaled_dot_product_attention(query.unsqueeze(2), key, value, attn_mask=bias, scale=1.0)
    return mixed.squeeze(2)


def attend_by_products(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scratch: Tensor) -> Tensor:
    """The same as `attend_fused`, by elementwise products into scratch [S, N, H, D].

    For a single query row on a CPU it takes less than half the time of the fused kernel and of batched
    matmuls. Only the bias of slot 0 is read.
    """
    scores = torch.mul(keys, query, out=scratch).sum(-1)
    scores[0] += bias[:, 0, :, 0]
    weights = scores.softmax(0)
    return torch.mul(values, weights.unsqueeze(-1), out=scratch).sum(0)


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

        text_value [N, dim], rotation [M, 2 heads, head_dim / 2], bias [N, 1, M, M + 1].
        """
        n, m, dim = x.shape
        qkv = self.wqkv(x).view(n, m, 3 * self.heads, -1)
        pairs = torch.view_as_complex(qkv[:, :, : 2 * self.heads].float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)
        query, key = turned.transpose(1, 2).chunk(2, dim=1)
        slot = text_value.view(n, 1, self.heads, -1)
        key = F.pad(key, (0, 0, 1, 0))
        value = torch.cat([slot, qkv[:, :, 2 * self.heads :]], dim=1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.wo(mixed.transpose(1, 2).reshape(n, m, dim))

    def step(self, x: Tensor, cache: Cache, layer: int, position: int) -> Tensor:
        """One image row x [N, dim] at `position`; writes its key and value into the cache; no gradient."""
        qkv = self.wqkv(x).view(len(x), 3 * self.heads, -1)
        pairs = torch.view_as_complex(qkv[:, : 2 * self.heads].float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * cache.rotation[position]).flatten(-2).type_as(x)
        query, key = turned.chunk(2, dim=1)
        cache.keys[layer, position + 1] = key
        cache.values[layer, position + 1] = qkv[:, 2 * self.heads :]
        end = position + 2
        keys, values = cache.keys[layer, :end], cache.values[layer, :end]
        if x.device.type == "cpu":
            mixed = attend_by_products(query, keys, values, cache.bias, cache.scratch[:end])
        else:
            mixed = attend_fused(query, keys, values, cache.bias[..., :end])
        return self.wo(mixed.reshape(x.shape))


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

    def step(self, x: Tensor, cache: Cache, layer: int, position: int) -> Tensor:
        x = x + self.attention.step(self.attention_norm(x), cache, layer, position)
        return x + self.feed_forward(self.ffn_norm(x))
