"""The key-value cache of half precision on CUDA: one kernel reads what is written, image and text merged exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rank_e.backbones.decoding.attention import attend_slots, merge
from rank_e.backbones.decoding.slots import DevicePosition, TextSlots

SPARE_TEXTS, TEXT_ROWS = 2, 32
"""Room for a batch with a few more texts, and the multiple to which their length is rounded up."""


class TextLayer(Protocol):
    """One layer's texts."""

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Query [N, heads, D] -> (mean of values [N, heads, D], log-sum-exp [N, heads])."""
        ...


@dataclass(frozen=True)
class SlotLayer:
    """A text that is one slot with key 0: value [N, heads, D], score [N, 1]."""

    value: Tensor
    score: Tensor

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        return self.value, self.score


class SlotText:
    """Texts of one slot each, gathered for N rows."""

    def __init__(self, text: TextSlots) -> None:
        values = torch.stack([value[:, 0].index_select(0, text.index) for value in text.values])
        self.score = torch.empty(len(text.index), 1, device=values.device)
        self.layers = [SlotLayer(value, self.score) for value in values]

    def fits(self, text: TextSlots) -> bool:
        return len(self.score) == len(text.index)

    def fill(self, text: TextSlots) -> None:
        self.score.copy_(text.bias.index_select(0, text.index))
        for layer, value in zip(self.layers, text.values, strict=True):
            layer.value.copy_(value[:, 0].index_select(0, text.index))


@dataclass(frozen=True)
class SharedLayer:
    """Keys and values [R, T, kv_heads, D] of R texts; which int32 [N]: each row's text; used int32 [R]: their rows."""

    keys: Tensor
    values: Tensor
    which: Tensor
    used: Tensor

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        return attend_slots(query, self.keys, self.values, self.which, self.used)


class SharedText:
    """Texts that rows share: each lies in memory once, and rows beside each other find it in the card's cache.

    Hidden rows are moved behind the others, where nobody looks.
    """

    def __init__(self, text: TextSlots) -> None:
        assert text.keys is not None
        count, length, *shape = text.values[0].shape
        self.room, self.length = count + SPARE_TEXTS, -(-length // TEXT_ROWS) * TEXT_ROWS
        self.which = torch.zeros_like(text.index, dtype=torch.int32)
        self.used = torch.zeros(self.room, dtype=torch.int32, device=self.which.device)
        both = text.keys[0].new_zeros(2, len(text.values), self.room, self.length, *shape)
        self.layers = [SharedLayer(k, v, self.which, self.used) for k, v in zip(*both, strict=True)]

    def fits(self, text: TextSlots) -> bool:
        count, length = text.bias.shape
        return len(self.which) == len(text.index) and count <= self.room and length <= self.length

    def fill(self, text: TextSlots) -> None:
        assert text.keys is not None
        hidden = text.bias < 0
        order = hidden.int().argsort(dim=1, stable=True)[..., None, None]
        count, length = hidden.shape
        self.which.copy_(text.index)
        self.used[:count] = (~hidden).sum(1)
        for layer, keys, values in zip(self.layers, text.keys, text.values, strict=True):
            for buffer, texts in ((layer.keys, keys), (layer.values, values)):
                buffer[:count, :length] = texts.take_along_dim(order, 1)


@dataclass(frozen=True)
class FlashLayer:
    """keys, values [N, L, kv_heads, D] of the image; which and used as in `attend_slots`; the text's own layer."""

    keys: Tensor
    values: Tensor
    text: TextLayer
    position: DevicePosition
    which: Tensor
    used: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys.index_copy_(1, self.position.index, key.unsqueeze(1))
        self.values.index_copy_(1, self.position.index, value.unsqueeze(1))
        mixed, log_sum = attend_slots(query, self.keys, self.values, self.which, self.used)
        return merge(mixed, log_sum, *self.text.attend(query))


class FlashCache:
    """Image slots side by side for each row; the texts apart."""

    def __init__(self, text: TextSlots, length: int) -> None:
        device, rows, shape = text.index.device, len(text.index), text.values[0].shape
        self.position = DevicePosition(device)
        self.text: SlotText | SharedText = SlotText(text) if text.keys is None else SharedText(text)
        self.which = torch.arange(rows, dtype=torch.int32, device=device)
        self.used = torch.ones_like(self.which)
        both = text.values[0].new_zeros(2, len(text.values), rows, length, *shape[2:])
        self.layers = [
            FlashLayer(keys, values, layer, self.position, self.which, self.used)
            for keys, values, layer in zip(*both, self.text.layers, strict=True)
        ]

    def fits(self, text: TextSlots) -> bool:
        return self.text.fits(text)

    def fill(self, text: TextSlots) -> None:
        self.position.index.zero_()
        self.used.fill_(1)
        self.text.fill(text)

    def advance(self) -> None:
        self.position.advance()
        self.used.add_(1)
