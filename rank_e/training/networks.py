"""The decoder update's frozen and adversarial networks, as `params.yaml` names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rank_e.io.plugins import call_factory

if TYPE_CHECKING:
    from rank_e.config.kinds import Kind
    from rank_e.training.discriminator_update import Discriminator

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images [N, 3, H, W] in [0, 1] -> a scalar distance >= 0, a mean over the N pairs."""


def build_perceptual(section: Kind, folder: Path, device: torch.device) -> Perceptual:
    """One of `rank_e.config.kinds.PerceptualParams`; RankEError names what cannot be loaded."""
    perceptual: Perceptual = call_factory("decoder.perceptual", section.path, folder, device, section.options)
    return perceptual


def build_discriminator(section: Kind, folder: Path, generator: torch.Generator, device: torch.device) -> Discriminator:
    """One of `rank_e.config.kinds.DiscriminatorParams`, freshly initialised from `generator`, on the device.

    RankEError names what cannot be loaded.
    """
    options = {**section.options, "generator": generator}
    discriminator: Discriminator = call_factory("decoder.discriminator", section.path, folder, device, options)
    return discriminator
