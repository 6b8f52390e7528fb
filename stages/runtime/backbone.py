"""The generator that a stage works with."""

import torch

from rank_e.backbones import load_backbone
from rank_e.backbones.protocol import Backbone
from stages.runtime.room import check_room
from stages.runtime.stage import WORK, Stage


def backbone_of(stage: Stage) -> Backbone:
    """The backbone of `backbone.name` on the stage's device, in `runtime.dtype`.

    RankEError if the disk has no room for what the stage will write: it is known as soon as the base is.
    """
    chosen = stage.params.backbone
    backbone = load_backbone(chosen.name, chosen.base, stage.device, dtype_of(stage))
    check_room(stage.params, stage.name, stage.arm, stage.key, WORK / "state")
    return backbone


def dtype_of(stage: Stage) -> torch.dtype:
    """`runtime.dtype`: what the stage's networks compute in."""
    dtype: torch.dtype = getattr(torch, stage.params.runtime.dtype)
    return dtype
