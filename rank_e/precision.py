"""In which type networks compute: float32 as they are, or bfloat16 under autocast; their weights are float32 in both.

Autocast goes around networks alone. What is formed of their outputs (losses, distances, scores) is float32: outputs are
cast at once, and what within a network must not be rounded stands in a `float32_island`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Precision:
    """How image networks compute on `device` under `runtime.dtype`, float32 or bfloat16."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """Goes around one forward pass of a network; in float32 it changes nothing.

        One pass each, because autocast keeps its casts of trained weights until it ends: without a graph where the
        first pass had none, and through a step of the optimiser.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def float32_island(device: torch.device) -> torch.autocast:
    """Within an autocast, what computes in the types of its inputs."""
    return torch.autocast(device.type, enabled=False)


def channels_last(images: Tensor) -> Tensor:
    """Images [N, C, H, W] as convolutions under autocast read them fastest; in float32 as they are."""
    autocast = torch.is_autocast_enabled(images.device.type)
    return images.contiguous(memory_format=torch.channels_last) if autocast else images


class GroupNorm(nn.GroupNorm):
    """Gives the type of its input. On CUDA autocast would make the map float32, twice the memory of what is kept.

    The kernel sums in float32 whatever the type. It reads channels first on CUDA, so between such norms a layout of
    channels last has no place there (`native_group_norm` of PyTorch).
    """

    def forward(self, input: Tensor) -> Tensor:
        with float32_island(input.device):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)
