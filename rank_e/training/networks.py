"""The decoder update's frozen and adversarial networks, as `params.yaml` names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.io.plugins import call_factory, is_path

if TYPE_CHECKING:
    from rank_e.config.schema import PatchGANParams, ProjectedParams
    from rank_e.config.types import Plugin
    from rank_e.training.discriminator_update import Discriminator

Perceptual = Callable[[Tensor, Tensor], Tensor]


def build_perceptual(section: Plugin, folder: Path, device: torch.device) -> Perceptual:
    """Two batches of images in [0, 1] -> scalar: `lpips` {file: torchvision's VGG16}, or your own dotted path."""
    options = dict(section.model_extra or {})
    if is_path(section.kind):
        perceptual: Perceptual = call_factory("decoder.perceptual", section.kind, folder, device, options)
        return perceptual
    if section.kind != "lpips" or options.keys() != {"file"}:
        raise RankEError(
            f"decoder.perceptual: {section.kind} with {', '.join(options) or 'no further key'}; "
            "give {kind: lpips, file: PATH} or {kind: package.module:factory, ...}"
        )
    from rank_e.training.lpips_vgg import LpipsVGG

    return LpipsVGG(folder / str(options["file"]), device)


def build_discriminator(
    section: PatchGANParams | ProjectedParams, folder: Path, generator: torch.Generator, device: torch.device
) -> Discriminator:
    """A freshly initialised discriminator on the device; RankEError names a file that cannot be loaded."""
    if section.kind == "patchgan":
        from rank_e.training.patchgan import PatchGAN

        return PatchGAN(section.channels, section.layers).initialise(generator).to(device)
    from rank_e.training.projected_discriminator import ProjectedDiscriminator

    projected = ProjectedDiscriminator(
        folder / section.dinov3,
        folder / section.efficientnet,
        section.image_size,
        section.channels,
        section.efficientnet_name,
    )
    return projected.initialise(generator).to(device)
