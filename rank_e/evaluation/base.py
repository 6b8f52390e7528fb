"""What a judge is: a call from pictures (and prompts) to one value or one feature row a picture.

Judges see what a published evaluation would read back from image files: bytes. Each names its protocol (sizes,
resizing, network) and the sha256 of its weights, so that a number is never compared with one made otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rank_e.errors import RankEError

Pictures = Sequence[Tensor] | Tensor
"""N pictures uint8 [3, H, W]: a list (sizes may differ) or one tensor [N, 3, H, W]."""


class JudgeError(RankEError):
    """A judge cannot be loaded, was given the wrong pictures, or was asked to compare across protocols."""


class FeatureNetwork(Protocol):
    """Pictures (`Pictures`) -> features float32 [N, D] on the CPU."""

    protocol: str
    source: str

    def __call__(self, pictures: Pictures) -> Tensor: ...


class Scorer(Protocol):
    """Pictures (`Pictures`) and their N prompts -> one score a picture, float32 [N] on the CPU."""

    protocol: str
    source: str

    def __call__(self, pictures: Pictures, prompts: Sequence[str]) -> Tensor: ...


def as_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] (float, any shape) -> uint8, rounded to the nearest level as image files are written.

    uint8 passes unchanged. Raises JudgeError for values that are not finite; values outside [0, 1] are clamped.
    """
    if pictures.dtype == torch.uint8:
        return pictures
    if not pictures.is_floating_point():
        raise JudgeError(f"judges: pictures are {pictures.dtype}; give float in [0, 1] or uint8")
    if not bool(torch.isfinite(pictures).all()):
        raise JudgeError("judges: pictures contain NaN or infinity; check the decoder that drew them")
    return (pictures.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def check_pictures(name: str, pictures: Pictures) -> None:
    """Raise JudgeError unless every picture is uint8 [3, H, W] and there is at least one."""
    if len(pictures) == 0:
        raise JudgeError(f"{name}: no pictures; give at least one")
    for place, picture in enumerate(pictures):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0:
            raise JudgeError(
                f"{name}: picture {place} is {picture.dtype} {list(picture.shape)}; give uint8 [3, H, W] (`as_bytes`)"
            )


def check_values(name: str, values: Tensor) -> Tensor:
    """`values` [N] or [N, D] unchanged; raises JudgeError with the first picture whose value is not finite."""
    finite = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)
    if not bool(finite.all()):
        raise JudgeError(f"{name}: the value of picture {int((~finite).nonzero()[0])} is not finite; check its weights")
    return values
