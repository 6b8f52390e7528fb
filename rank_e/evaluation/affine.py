"""A control that any real improvement must beat: matching each image's brightness and contrast to real ones.

Part of a Frechet gain can be had by re-spreading the images' means alone, without a decoder that draws better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AffineControl:
    """x -> (x - image mean) * contrast + scale * image mean + shift, per channel; each vector float32 [3]."""

    contrast: Tensor
    scale: Tensor
    shift: Tensor

    @classmethod
    def fit(cls, images: Tensor, real: Tensor) -> AffineControl:
        """Match `images` to `real` (both [N, 3, H, W] in [0, 1]): per channel, the mean and spread of the image means,
        and the average standard deviation within an image. Fit on other images than those it is tried on.
        """
        (mean, spread, within), (real_mean, real_spread, real_within) = (
            _statistics(images),
            _statistics(real),
        )
        scale = real_spread / spread.clamp(min=1e-6)
        return cls(real_within / within.clamp(min=1e-6), scale, real_mean - scale * mean)

    def __call__(self, images: Tensor) -> Tensor:
        """Corrected images [N, 3, H, W], clamped to [0, 1]."""
        means = images.mean((2, 3), keepdim=True)
        contrast, scale, shift = (v.view(1, 3, 1, 1) for v in (self.contrast, self.scale, self.shift))
        return ((images - means) * contrast + scale * means + shift).clamp(0, 1)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per channel [3]: mean of the image means, their standard deviation, mean deviation within an image."""
    means = images.mean((2, 3))
    return means.mean(0), means.std(0), images.std((2, 3)).mean(0)


class AffineHalves:
    """The affine control fitted twice, on every second image, so that no image is corrected by its own fit."""

    def __init__(self, images: Tensor, real: Tensor) -> None:
        """The first images of a stream and as many real ones, float32 [N, 3, S, S] in [0, 1]."""
        self.controls = [AffineControl.fit(images[half::2], real[half::2]) for half in (1, 0)]

    def __call__(self, images: Tensor, start: int) -> Tensor:
        """The stream's images from number `start` on, matched to real ones."""
        corrected = torch.empty_like(images)
        for place in (0, 1):
            corrected[place::2] = self.controls[(start + place) % 2](images[place::2])
        return corrected
