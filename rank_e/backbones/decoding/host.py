"""The key-value cache of a CPU: Python knows the position, so slices read what is written and little else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rank_e.backbones.decoding.slots import HostPosition, TextSlots

BATCHED = 400
"""slots * head_dim from which PyTorch hands a batch of products with one row to the machine's library.

Below that a loop of its own takes longer for fewer slots: that many are read at least (ATen, native/LinearAlgebra.cpp).
"""


@dataclass(frozen=True)
class HostLayer:
    """keys, values [N * kv_heads, T + L, head_dim]; bias [N * kv_heads, 1, T]."""

    keys: Tensor
    values: Tensor
    bias: Tensor
    position: HostPosition

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        slots, head_dim = self.keys.shape[1:]
        text = self.bias.shape[2]
        end = text + self.position.index + 1
        self.keys[:, end - 1], self.values[:, end - 1] = key.flatten(0, 1), value.flatten(0, 1)
        read = min(slots, max(end, -(-BATCHED // head_dim)))
        grouped = query.reshape(len(self.keys), -1, head_dim)
        scores = torch.bmm(grouped, self.keys[:, :read].transpose(1, 2))
        scores[..., :text] += self.bias
        scores[..., end:] = float("-inf")
        return torch.bmm(scores.softmax(-1), self.values[:, :read]).view(query.shape)


class HostCache:
    """All slots of a head side by side."""

    def __init__(self, text: TextSlots, length: int) -> None:
        _, self.count, self.kv_heads, head_dim = text.values[0].shape
        self.rows, self.position = len(text.index), HostPosition()
        kind = text.values[0] if text.keys is None else text.keys[0]
        keys = kind.new_zeros(len(text.values), self.rows * self.kv_heads, self.count + length, head_dim)
        values = torch.zeros_like(keys)
        self.bias = kind.new_empty(self.rows * self.kv_heads, 1, self.count)
        self.layers = [HostLayer(k, v, self.bias, self.position) for k, v in zip(keys, values, strict=True)]

    def fits(self, text: TextSlots) -> bool:
        return (self.rows, self.count) == (len(text.index), text.bias.shape[1])

    def fill(self, text: TextSlots) -> None:
        self.position.index = 0
        self.bias.copy_(text.bias.index_select(0, text.index).repeat_interleave(self.kv_heads, 0).unsqueeze(1))
        for number, layer in enumerate(self.layers):
            layer.values[:, : self.count] = self._rows_of(text.values[number], text.index)
            if text.keys is not None:
                layer.keys[:, : self.count] = self._rows_of(text.keys[number], text.index)

    def _rows_of(self, texts: Tensor, index: Tensor) -> Tensor:
        """[P, T, kv_heads, head_dim] -> [N * kv_heads, T, head_dim]."""
        return texts.index_select(0, index).transpose(1, 2).flatten(0, 1)

    def advance(self) -> None:
        self.position.advance()
