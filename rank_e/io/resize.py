"""Antialiased resizing, differentiable, the same bits twice on every device.

`torch.nn.functional.interpolate(antialias=True)` has no deterministic backward on CUDA. A resize is linear and acts on
rows and columns apart, so there it is two products with small matrices: images [N, C, H, W] -> V images U^T with V
[height, H] and U [width, W], whose rows hold the weights that torch and Pillow give to a row's or a column's pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rank_e.precision import float32_island

Mode = Literal["bicubic", "bilinear"]
A = -0.5  # of Keys' cubic kernel (IEEE TASSP 1981): Pillow's and antialiased torch's choice


def resize(images: Tensor, height: int, width: int, mode: Mode = "bicubic") -> Tensor:
    """Images float [N, C, H, W] -> [N, C, height, width], antialiased; those of that size already are not resampled.

    Overshoots of bicubic are kept. Enlarging, bilinear is what it is without antialiasing. Computed in float32 whatever
    autocast says; the result has the images' dtype.
    """
    if images.shape[-2:] == (height, width):
        return images
    if images.device.type != "cpu":
        return resize_by_products(images, height, width, mode)
    with float32_island(images.device):
        fine = _float32_at_least(images)
        return F.interpolate(fine, (height, width), mode=mode, antialias=True, align_corners=False).to(images.dtype)


def resize_by_products(images: Tensor, height: int, width: int, mode: Mode = "bicubic") -> Tensor:
    """The same as `resize`, within 1e-5 of images in [0, 1], as two products with matrices of weights."""
    with float32_island(images.device):  # rounded to bfloat16, weights no longer sum to 1
        fine = _float32_at_least(images)
        if images.shape[-1] != width:
            fine = fine @ resize_weights(images.shape[-1], width, mode, fine.device, fine.dtype).T
        if images.shape[-2] != height:
            fine = resize_weights(images.shape[-2], height, mode, fine.device, fine.dtype) @ fine
        return fine.to(images.dtype)


def _float32_at_least(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))


@lru_cache(maxsize=64)
def resize_weights(length: int, target: int, mode: Mode, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What each of `length` pixels weighs in each of `target` pixels [target, length]; every row sums to 1.

    Places are computed in `dtype`, as torch does: at 256 pixels float32 moves them by 1e-5. Shared: do not write to it.
    """
    scale = length / target
    centres = (torch.arange(target, dtype=dtype) + 0.5) * scale
    # A kernel that shrinks is as wide as the result's pixels, one that enlarges as wide as the images'.
    distance = (torch.arange(length, dtype=dtype) - centres[:, None] + 0.5).abs() / max(scale, 1.0)
    weights = _cubic(distance) if mode == "bicubic" else (1.0 - distance).clamp_min(0.0)
    return (weights / weights.sum(1, keepdim=True)).to(device)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel at distances x >= 0: 1 at 0, negative between 1 and 2, 0 beyond."""
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
