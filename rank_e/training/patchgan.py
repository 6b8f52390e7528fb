"""The judge of local texture: PatchGAN (arXiv 1611.07004), one logit for each overlapping patch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from rank_e.errors import RankEError

GROUPS = 8  # of every GroupNorm
KERNEL = 4


class PatchGAN(nn.Module):
    """`layers` convolutions of stride 2, one of stride 1, one to a single channel; widths double up to 8x.

    Images [N, 3, H, W] in [0, 1] (mapped to [-1, 1] inside) -> logits [N, 1, h, w], unbounded; a side of S
    gives S / 2^layers - 2. `norm`: "group" judges each image alone; "batch" is the original's, and lets the
    images of a batch influence each other.
    """

    def __init__(
        self,
        channels: int = 64,
        layers: int = 3,
        in_channels: int = 3,
        norm: Literal["batch", "group"] = "group",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "group") or layers < 1 or channels < 1 or (norm == "group" and channels % GROUPS):
            raise RankEError(
                f"PatchGAN: channels {channels}, layers {layers}, norm {norm!r}; "
                f"allowed are layers >= 1, norm batch or group, channels a multiple of {GROUPS} with group"
            )
        width = channels
        parts: list[nn.Module] = [nn.Conv2d(in_channels, width, KERNEL, 2, 1), nn.LeakyReLU(0.2)]
        for depth in range(1, layers + 1):
            inputs, width = width, channels * min(2**depth, 8)
            stride = 2 if depth < layers else 1
            # The norm that follows has its own shift, so the convolution needs none.
            parts += [
                nn.Conv2d(inputs, width, KERNEL, stride, 1, bias=False),
                nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(GROUPS, width),
                nn.LeakyReLU(0.2),
            ]
        parts.append(nn.Conv2d(width, 1, KERNEL, 1, 1))
        self.layers = nn.Sequential(*parts)

    def initialise(self, generator: torch.Generator) -> PatchGAN:
        """Draw fresh weights (CPU only): convolutions normal, std 0.02; norms the identity. Returns self."""
        with torch.no_grad():
            for part in self.layers:
                if isinstance(part, nn.Conv2d):
                    part.weight.normal_(0.0, 0.02, generator=generator)
                    if part.bias is not None:
                        part.bias.zero_()
                elif isinstance(part, nn.GroupNorm | nn.BatchNorm2d):
                    part.reset_parameters()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images * 2.0 - 1.0)


def patchgan(folder: Path, device: torch.device, *, channels: int, layers: int, generator: torch.Generator) -> PatchGAN:
    """A fresh discriminator on patches; `folder` is not read: it is trained from scratch."""
    return PatchGAN(channels, layers).initialise(generator).to(device)
