"""The generator that a stage works with."""

import torch

from rank_e.backbones import load_backbone
from rank_e.backbones.protocol import Backbone
from stages.runtime.stage import Stage


def backbone_of(stage: Stage) -> Backbone:
    """The backbone of `backbone.name` on the stage's device, in `runtime.dtype`."""
    chosen = stage.params.backbone
    return load_backbone(chosen.name, chosen.base, stage.device, dtype_of(stage))


def dtype_of(stage: Stage) -> torch.dtype:
    """`runtime.dtype`: what the stage's networks compute in."""
    dtype: torch.dtype = getattr(torch, stage.params.runtime.dtype)
    return dtype
