"""What sampling asks of a key-value cache, whatever the machine: texts, a position, layers that attend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextSlots:
    """What N image rows see of P texts of T rows.

    keys (rotated; None: zeros, and T is 1) and values: for each layer [P, T, kv_heads, head_dim]; bias [P, T] is added
    to the scores, -inf hides a row; index int64 [N]: the text of each image row.
    """

    keys: Sequence[Tensor] | None
    values: Sequence[Tensor]
    bias: Tensor
    index: Tensor


class Position(Protocol):
    """A place in the image, at which tables [L, ...] are read and written."""

    def read(self, table: Tensor) -> Tensor: ...
    def write(self, table: Tensor, row: Tensor) -> None: ...
    def advance(self) -> None: ...


class HostPosition:
    """A position that Python knows."""

    def __init__(self) -> None:
        self.index = 0

    def read(self, table: Tensor) -> Tensor:
        return table[self.index]

    def write(self, table: Tensor, row: Tensor) -> None:
        table[self.index] = row

    def advance(self) -> None:
        self.index += 1


class DevicePosition:
    """A position that lies on the device: int64 [1]."""

    def __init__(self, device: torch.device) -> None:
        self.index = torch.zeros(1, dtype=torch.int64, device=device)

    def read(self, table: Tensor) -> Tensor:
        return table.index_select(0, self.index).squeeze(0)

    def write(self, table: Tensor, row: Tensor) -> None:
        table.index_copy_(0, self.index, row.unsqueeze(0))

    def advance(self) -> None:
        self.index.add_(1)


class LayerCache(Protocol):
    """One layer's keys and values."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write key and value [N, kv_heads, head_dim] at the position; the query [N, heads, head_dim] attends to the
        text and to the image up to there: [N, heads, head_dim]. Under no_grad."""
        ...


class Cache(Protocol):
    """Keys and values of N samples' rows, allocated once and filled for one batch after another."""

    position: Any

    @property
    def layers(self) -> Sequence[LayerCache]: ...

    def fits(self, text: TextSlots) -> bool:
        """Whether `fill` has room for this batch's texts."""
        ...

    def fill(self, text: TextSlots) -> None:
        """Begin a batch: its texts, and position 0."""
        ...

    def advance(self) -> None:
        """Go on to the next position."""
        ...
