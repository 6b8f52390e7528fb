"""The convolutional layers of LlamaGen's VQ model, named as in its checkpoints."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rank_e.precision import GroupNorm, float32_island

EPSILON = 1e-6
"""LlamaGen's, of every GroupNorm."""


class _NormSwish(torch.autograd.Function):
    """swish(group norm) of maps [N, C, H, W], of which the input alone is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *_sizes(x), groups, EPSILON)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups = groups
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        y = torch.native_group_norm(x, weight, bias, *_sizes(x), ctx.groups, EPSILON)[0]
        slope = torch.ops.aten.silu_backward(gradient, y).contiguous(memory_format=_layout(x))
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_group_norm_backward(
            slope, x, mean, rstd, weight, *_sizes(x), ctx.groups, wanted
        )
        return (*gradients, None)


def _layout(x: Tensor) -> torch.memory_format:
    """Channels last where maps are and the kernel can read them so: on a CPU. PyTorch's own norm does the same."""
    last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """N, C and H * W, as PyTorch's kernels of group norm ask for them."""
    return len(x), x.shape[1], x.shape[2:].numel()


class NormSwish(GroupNorm):
    """swish(GroupNorm(x)); the map between the two, a third of a residual block's memory, is made again for gradients.

    That costs a GPU the reading of one map twice; the gradients are the same to the bit.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, EPSILON)

    def forward(self, input: Tensor) -> Tensor:
        with float32_island(input.device):  # as in GroupNorm
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            swished: Tensor = _NormSwish.apply(input, weight, bias, self.num_groups)
        return swished


class ResidualBlock(nn.Module):
    """norm, swish, conv, twice; a 1x1 convolution on the shortcut when the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = NormSwish(inputs, groups), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = NormSwish(outputs, groups), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)
        self.widens = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return h + (self.nin_shortcut(x) if self.widens else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, EPSILON)
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
