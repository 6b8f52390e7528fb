"""Which key-value cache a machine gets.

On a CPU Python knows the position, so that slices read what is written. On CUDA the position lies on the device and
every position runs the same kernels on the same memory, so that one step can be captured as a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rank_e.backbones.decoding.flash import FlashCache
from rank_e.backbones.decoding.host import HostCache
from rank_e.backbones.decoding.masked import MaskedCache
from rank_e.backbones.decoding.slots import Cache, Position, TextSlots
from rank_e.backbones.layers import compiled


def open_slots(text: TextSlots, length: int) -> Cache:
    """The cache of this machine and precision for rows like `text`'s, not filled yet: `length` image tokens a row."""
    values = text.values[0]
    if values.is_cpu:
        return HostCache(text, length)
    return MaskedCache(text, length) if values.dtype == torch.float32 else FlashCache(text, length)


@dataclass(frozen=True)
class PolicyCache:
    """What a policy's steps read and write: keys and values, and the rotation [L, ...] of each position.

    compiled: whether the layers' steps run compiled.
    """

    slots: Cache
    rotation: Tensor
    compiled: bool

    @property
    def position(self) -> Position:
        """Where the next step feeds its tokens."""
        position: Position = self.slots.position
        return position

    @classmethod
    def open(cls, text: TextSlots, rotation: Tensor, fast: bool) -> PolicyCache:
        """Filled for a first batch. If `fast`, half precision on CUDA is compiled; float32 keeps its bits."""
        slots = open_slots(text, len(rotation))
        slots.fill(text)
        return cls(slots, rotation.clone(), fast and isinstance(slots, FlashCache))

    def refill(self, text: TextSlots, rotation: Tensor) -> bool:
        """Fill it for another batch; False, and nothing done, where the batch does not fit."""
        if not self.slots.fits(text):
            return False
        self.slots.fill(text)
        self.rotation.copy_(rotation)
        return True

    def kernel(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function that is to run for a layer's step: itself, or compiled."""
        return compiled(function) if self.compiled else function
