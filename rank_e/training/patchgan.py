"""The discriminator of local texture: PatchGAN (arXiv 1611.07004), one logit for each overlapping patch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rank_e.errors import RankEError
from rank_e.precision import GroupNorm

GROUPS = 8  # of every GroupNorm
KERNEL = 4


class PatchGAN(nn.Module):
    """`layers` convolutions of stride 2, one of stride 1, one to a single channel; widths double up to 8x.

    Images [N, 3, H, W] in [0, 1] (mapped to [-1, 1] inside) -> logits [N, 1, h, w], unbounded; a side of S gives
    S / 2^layers - 2. A logit sees a patch of 16, 34, 70, 142 px a side for 1, 2, 3, 4 layers; pix2pix and VQGAN take 70
    of 256 px. Group norms see each image alone, where the original's batch norms mix the images of a batch.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        if layers < 1 or channels < 1 or channels % GROUPS:
            raise RankEError(
                f"PatchGAN: channels {channels}, layers {layers}; give a multiple of {GROUPS} channels and layers >= 1"
            )
        width = channels
        modules: list[nn.Module] = [nn.Conv2d(3, width, KERNEL, 2, 1), nn.LeakyReLU(0.2)]
        for depth in range(1, layers + 1):
            inputs, width = width, channels * min(2**depth, 8)
            stride = 2 if depth < layers else 1
            # The norm that follows has its own shift, so the convolution needs none.
            convolution = nn.Conv2d(inputs, width, KERNEL, stride, 1, bias=False)
            modules += [convolution, GroupNorm(GROUPS, width), nn.LeakyReLU(0.2)]
        modules.append(nn.Conv2d(width, 1, KERNEL, 1, 1))
        self.layers = nn.Sequential(*modules)

    def initialise(self, generator: torch.Generator) -> PatchGAN:
        """Fresh random weights (CPU only): convolutions normal, std 0.02; norms the identity. Returns self."""
        with torch.no_grad():
            for module in self.layers:
                if isinstance(module, nn.Conv2d):
                    module.weight.normal_(0.0, 0.02, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, nn.GroupNorm):
                    module.reset_parameters()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images * 2.0 - 1.0)


def patchgan(folder: Path, device: torch.device, *, channels: int, layers: int, generator: torch.Generator) -> PatchGAN:
    """A fresh discriminator on patches of 16, 34, 70, ... px (1, 2, 3, ... layers); it reads no file."""
    return PatchGAN(channels, layers).initialise(generator).to(device)
