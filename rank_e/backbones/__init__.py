"""The generators, and the registry that finds one by its name, without importing it."""

from rank_e.errors import RankEError

BACKBONES = {
    "janus": "rank_e.backbones.janus:JanusBackbone",
    "llamagen": "rank_e.backbones.llamagen:LlamaGenBackbone",
    "shapes": "rank_e.shapes.backbone:ShapesBackbone",
}


def backbone_path(name: str) -> str:
    """`package.module:factory` of the backbone called `name`; RankEError names an unknown one."""
    if name not in BACKBONES:
        raise RankEError(f"backbone.name: unknown backbone {name!r}; known: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]
