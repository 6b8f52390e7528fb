"""The generators: the registry that finds one by its name without importing it, and the loader."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_e.errors import RankEError

if TYPE_CHECKING:
    import torch

    from rank_e.backbones.protocol import Backbone

BACKBONES = {
    "janus": "rank_e.backbones.janus.backbone:JanusBackbone",
    "llamagen": "rank_e.backbones.llamagen.backbone:LlamaGenBackbone",
    "shapes": "rank_e.shapes.backbone:ShapesBackbone",
}


def backbone_path(name: str) -> str:
    """`package.module:factory` of the backbone called `name`; RankEError names an unknown one."""
    if name not in BACKBONES:
        raise RankEError(f"backbone.name: unknown backbone {name!r}; known: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]


def load_backbone(name: str, base: str | Path, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The backbone called `name` with the base weights in folder `base`; RankEError names an unknown one."""
    module, _, attribute = backbone_path(name).partition(":")
    maker: Any = getattr(import_module(module), attribute)
    backbone: Backbone = maker(Path(base), device, dtype)
    return backbone
