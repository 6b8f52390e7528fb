"""The generators: the registry that finds one by its name without importing it, and the loader."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rank_e.errors import RankEError, nearest

if TYPE_CHECKING:
    import torch

    from rank_e.backbones.protocol import Backbone


class Paths(NamedTuple):
    """Where a backbone is found, each as `package.module:class`: the `Backbone`, and the torch-free `BackboneInfo`."""

    backbone: str
    info: str


BACKBONES = {
    "janus": Paths("rank_e.backbones.janus.backbone:JanusBackbone", "rank_e.backbones.janus.sizes:JanusInfo"),
    "llamagen": Paths(
        "rank_e.backbones.llamagen.backbone:LlamaGenBackbone", "rank_e.backbones.llamagen.sizes:LlamaGenInfo"
    ),
    "shapes": Paths("rank_e.shapes.backbone:ShapesBackbone", "rank_e.shapes.sizes:ShapesInfo"),
}


def paths_of(name: str) -> Paths:
    """Where the backbone called `name` is found; RankEError names an unknown one."""
    if name not in BACKBONES:
        known = sorted(BACKBONES)
        raise RankEError(
            f"backbone.name: unknown backbone {name!r}; give one of {', '.join(known)}{nearest(name, known)}"
        )
    return BACKBONES[name]


def imported(path: str) -> Any:
    """What `package.module:name` names."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def load_backbone(name: str, base: str | Path, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The backbone called `name` with the base weights in folder `base`; RankEError names an unknown one."""
    backbone: Backbone = imported(paths_of(name).backbone)(Path(base), device, dtype)
    return backbone
