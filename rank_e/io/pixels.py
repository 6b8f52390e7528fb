"""The three forms of an image's values and the ways between them.

Images are float in [0, 1] wherever nothing else is said. Files and evaluations hold bytes, uint8; tokenizers work in
[-1, 1]. All functions are elementwise and take any shape.
"""

import torch
from torch import Tensor

from rank_e.errors import RankEError


def to_bytes(images: Tensor) -> Tensor:
    """Float in [0, 1] -> uint8, rounded to the nearest level as image files are written; uint8 passes unchanged.

    Values outside [0, 1] are clamped. RankEError for integers of another kind and for values that are not finite.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise RankEError(f"images are {images.dtype}; give float in [0, 1] or uint8")
    if not bool(torch.isfinite(images).all()):
        raise RankEError("images contain NaN or infinity; check the decoder that drew them")
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return images.float() / 255


def to_signed(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], in the dtype given."""
    return images * 2 - 1


def from_signed(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], in the dtype given; not clamped, so that gradients reach saturated pixels."""
    return (images + 1) / 2
