"""The generator that a stage works with."""

import torch

from rank_e.backbones import load_backbone
from rank_e.backbones.protocol import Backbone
from stages.runtime.room import check_room
from stages.runtime.stage import WORK, Stage


def backbone_of(stage: Stage) -> Backbone:
    """The backbone of `backbone.name` on the stage's device, in `runtime.dtype`.

    RankEError first if the disk has no room for what the stage will write.
    """
    chosen = stage.params.backbone
    check_room(stage.params, stage.name, stage.arm, stage.key, WORK / "state")
    return load_backbone(chosen.name, chosen.base, stage.device, dtype_of(stage))


def dtype_of(stage: Stage) -> torch.dtype:
    """`runtime.dtype`: what the stage's networks compute in."""
    dtype: torch.dtype = getattr(torch, stage.params.runtime.dtype)
    return dtype
