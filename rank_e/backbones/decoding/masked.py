"""The key-value cache of float32 on CUDA: one fused kernel over all slots, a bias hides those not written yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rank_e.backbones.decoding.slots import DevicePosition, TextSlots


@dataclass(frozen=True)
class MaskedLayer:
    """keys, values [N, T + L, kv_heads, head_dim]; bias [N, 1, 1, T + L] and slot int64 [1], shared by all layers."""

    keys: Tensor
    values: Tensor
    bias: Tensor
    slot: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys.index_copy_(1, self.slot, key.unsqueeze(1))
        self.values.index_copy_(1, self.slot, value.unsqueeze(1))
        keys, values = self.keys.transpose(1, 2), self.values.transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            query.unsqueeze(2), keys, values, attn_mask=self.bias, scale=1.0, enable_gqa=True
        )
        return mixed.squeeze(2)


class MaskedCache:
    """Text and image in one row of slots; what is not written yet is hidden by the bias."""

    def __init__(self, text: TextSlots, length: int) -> None:
        _, self.count, kv_heads, head_dim = text.values[0].shape
        rows, self.position = len(text.index), DevicePosition(text.bias.device)
        keys = text.values[0].new_zeros(len(text.values), rows, self.count + length, kv_heads, head_dim)
        self.bias = text.bias.new_empty(rows, 1, 1, self.count + length)
        self.slot = torch.zeros_like(self.position.index)
        values = torch.zeros_like(keys)
        self.layers = [MaskedLayer(k, v, self.bias, self.slot) for k, v in zip(keys, values, strict=True)]

    def fits(self, text: TextSlots) -> bool:
        return (len(self.bias), self.count) == (len(text.index), text.bias.shape[1])

    def fill(self, text: TextSlots) -> None:
        self.position.index.zero_()
        self.slot.fill_(self.count)
        self.bias.fill_(float("-inf"))
        self.bias[..., : self.count] = text.bias.index_select(0, text.index)[:, None, None]
        self.bias.index_fill_(3, self.slot, 0.0)
        for number, layer in enumerate(self.layers):
            layer.values[:, : self.count] = text.values[number].index_select(0, text.index)
            if text.keys is not None:
                layer.keys[:, : self.count] = text.keys[number].index_select(0, text.index)

    def advance(self) -> None:
        self.position.advance()
        # After the last token there is no further slot, and the last one is open already.
        self.slot.add_(1).clamp_(max=self.bias.shape[3] - 1)
        self.bias.index_fill_(3, self.slot, 0.0)
