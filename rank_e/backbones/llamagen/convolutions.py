"""The convolutional layers of LlamaGen's VQ model, named as in its checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rank_e.precision import GroupNorm


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with LlamaGen's epsilon."""
    return GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, swish, conv, twice; a 1x1 convolution on the shortcut when the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs, groups), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = group_norm(outputs, groups), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)
        self.widens = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if self.widens else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Stride-2 convolution, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution; both at once, as one transposed convolution.

    A 3x3 kernel reads every input place under the doubled map with the sum of the taps that fall on it: 4x4 taps for
    four output places, 16 products where the two steps take 36.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        taps = F.avg_pool2d(F.pad(self.conv.weight, (1, 1, 1, 1)), 2, stride=1, divisor_override=1)
        return F.conv_transpose2d(x, taps.flip(2, 3).transpose(0, 1), self.conv.bias, stride=2, padding=1)


class Level(nn.Module):
    """Residual blocks at one resolution, with attention or not, then a change of resolution, if any."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        blocks: int,
        attention: bool,
        resample: Downsample | Upsample | None,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(outputs if i else inputs, outputs, groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(outputs, groups) for _ in range(blocks if attention else 0))
        self.resample = type(resample).__name__.lower() if resample else ""  # the name in the checkpoints
        if resample:
            self.add_module(self.resample, resample)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return self.get_submodule(self.resample)(x) if self.resample else x


def middle(channels: int, groups: int) -> nn.ModuleList:
    """Residual block, attention, residual block: the bottom of encoder and decoder."""
    first, last = (ResidualBlock(channels, channels, groups) for _ in range(2))
    return nn.ModuleList([first, AttentionBlock(channels, groups), last])


def initialise_convolutions(module: nn.Module, generator: torch.Generator) -> None:
    """Kaiming-uniform weights and zero biases of all convolutions, identity norms, from one generator."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_uniform_(part.weight, a=5**0.5, generator=generator)
                if part.bias is not None:
                    part.bias.zero_()
            elif isinstance(part, nn.GroupNorm | nn.BatchNorm2d):
                part.reset_parameters()
