"""The key-value cache of half precision on CUDA: flash kernels for the image and for the text, merged exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rank_e.backbones.decoding.slots import DevicePosition, TextSlots

SPARE_TEXTS, TEXT_ROWS = 2, 32
"""Room for a batch with a few more texts, and the multiple to which their length is rounded up."""


@dataclass(frozen=True)
class Packed:
    """Where runs of queries and of slots lie in packed tensors, int32 on the device.

    queries [R + 1]: run r has rows queries[r] to queries[r + 1]; slots [R + 1]: its slots begin at slots[r]; used [R]:
    how many of them are read. longest_queries and longest_slots bound both.
    """

    queries: Tensor
    slots: Tensor
    used: Tensor
    longest_queries: int
    longest_slots: int


def attend_packed(query: Tensor, keys: Tensor, values: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """Flash attention of packed queries [Q, heads, D] to packed slots [S, kv_heads, D], run by run.

    Returns their means of values [Q, heads, D] and the log-sum-exps of the scores, float32 [Q, heads].
    """
    mixed, log_sums, *_ = torch.ops.aten._flash_attention_forward(
        query,
        keys,
        values,
        packed.queries,
        packed.slots,
        packed.longest_queries,
        packed.longest_slots,
        0.0,
        False,
        False,
        scale=1.0,
        seqused_k=packed.used,
    )
    return mixed, log_sums.T


def merge(one: Tensor, one_log_sum: Tensor, other: Tensor, other_log_sum: Tensor) -> Tensor:
    """Attention to two sets of slots together, from each one's mean [N, heads, D] and log-sum-exp [N, heads]."""
    share = torch.sigmoid(one_log_sum - other_log_sum).unsqueeze(-1)
    return torch.lerp(other.float(), one.float(), share).type_as(one)


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
    """Keys and values [R, T, kv_heads, D] of the texts of R runs of rows."""

    keys: Tensor
    values: Tensor
    packed: Packed

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        return attend_packed(query, self.keys.flatten(0, 1), self.values.flatten(0, 1), self.packed)


class SharedText:
    """Texts that neighbouring rows share: each run of rows with one text reads its keys and values once.

    Hidden rows are moved behind the others, where no run looks.
    """

    def __init__(self, text: TextSlots) -> None:
        assert text.keys is not None
        self.rows, shape = len(text.index), text.values[0].shape
        self.room, self.length = len(_runs(text.index)[0]) + SPARE_TEXTS, -(-shape[1] // TEXT_ROWS) * TEXT_ROWS
        device = text.index.device
        starts = torch.zeros(self.room + 1, dtype=torch.int32, device=device)
        slots = torch.arange(self.room + 1, dtype=torch.int32, device=device) * self.length
        self.packed = Packed(starts, slots, torch.zeros_like(starts[1:]), self.rows, self.length)
        both = text.keys[0].new_zeros(2, len(text.values), self.room, self.length, *shape[2:])
        self.layers = [SharedLayer(k, v, self.packed) for k, v in zip(*both, strict=True)]

    def fits(self, text: TextSlots) -> bool:
        runs = len(_runs(text.index)[0])
        return self.rows == len(text.index) and runs <= self.room and text.bias.shape[1] <= self.length

    def fill(self, text: TextSlots) -> None:
        assert text.keys is not None
        which, counts = _runs(text.index)
        hidden = text.bias.index_select(0, which) < 0
        order = hidden.int().argsort(dim=1, stable=True)[..., None, None]
        runs, count = hidden.shape
        self.packed.used.zero_()
        self.packed.used[:runs] = (~hidden).sum(1).int()
        self.packed.queries.fill_(self.rows)
        self.packed.queries[0] = 0
        self.packed.queries[1 : runs + 1] = counts.cumsum(0).int()
        for layer, keys, values in zip(self.layers, text.keys, text.values, strict=True):
            for buffer, texts in ((layer.keys, keys), (layer.values, values)):
                buffer[:runs, :count] = texts.index_select(0, which).take_along_dim(order, 1)


def _runs(index: Tensor) -> tuple[Tensor, Tensor]:
    """The text of each run of equal neighbours, and the run's length."""
    which, counts = torch.unique_consecutive(index, return_counts=True)
    return which, counts


@dataclass(frozen=True)
class FlashLayer:
    """keys, values [N, L, kv_heads, D] of the image; the text's own layer."""

    keys: Tensor
    values: Tensor
    text: TextLayer
    position: DevicePosition
    packed: Packed

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys.index_copy_(1, self.position.index, key.unsqueeze(1))
        self.values.index_copy_(1, self.position.index, value.unsqueeze(1))
        image = attend_packed(query, self.keys.flatten(0, 1), self.values.flatten(0, 1), self.packed)
        return merge(*image, *self.text.attend(query))


class FlashCache:
    """Image slots side by side for each row; the texts apart."""

    def __init__(self, text: TextSlots, length: int) -> None:
        device, rows, shape = text.index.device, len(text.index), text.values[0].shape
        self.position = DevicePosition(device)
        self.text: SlotText | SharedText = SlotText(text) if text.keys is None else SharedText(text)
        starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.packed = Packed(starts, starts * length, torch.ones_like(starts[1:]), 1, length)
        both = text.values[0].new_zeros(2, len(text.values), rows, length, *shape[2:])
        self.layers = [
            FlashLayer(keys, values, layer, self.position, self.packed)
            for keys, values, layer in zip(*both, self.text.layers, strict=True)
        ]

    def fits(self, text: TextSlots) -> bool:
        return self.text.fits(text)

    def fill(self, text: TextSlots) -> None:
        self.position.index.zero_()
        self.packed.used.fill_(1)
        self.text.fill(text)

    def advance(self) -> None:
        self.position.advance()
        self.packed.used.add_(1)
