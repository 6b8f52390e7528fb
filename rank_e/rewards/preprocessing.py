"""How published rewards prepare an image, in torch and differentiable: one named function for each protocol.

Resizing is bicubic and antialiased, as Pillow's and torchvision's is. Published pipelines read 8-bit files: whatever
is outside [0, 1] or between two of the 256 levels cannot reach them. Here values are cut off and rounded in the same
places, but their gradient is left as it is (a straight-through estimator): a score is that of the file that a user
would save, and a decoder that overshoots is still told the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from rank_e.io.resize import resize

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def round_to_levels(scaled: Tensor) -> Tensor:
    """The nearest of the levels 0, 1, ..., 255, halves upwards as in Pillow, with the gradient of `scaled`."""
    return scaled + ((scaled + 0.5).floor().clamp(0, 255) - scaled).detach()


def pillow_resize(images: Tensor, height: int, width: int) -> Tensor:
    """`resize` of 8-bit images as Pillow does it: along rows, then along columns, 8 bits after each."""
    scaled = round_to_levels(images * 255)  # whole numbers: halves stay halves in float32
    for target in ((scaled.shape[-2], width), (height, width)):
        if scaled.shape[-2:] != target:
            scaled = round_to_levels(resize(scaled, *target))
    return scaled / 255


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std for each channel."""
    centre, spread = (_per_channel(tuple(values), images.device, images.dtype) for values in (mean, std))
    return (images - centre) / spread


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Constants [3, 1, 1], copied to a device once: a copy in every call would stop the host each time."""
    return torch.tensor(values, device=device, dtype=dtype).view(3, 1, 1)


def shorter_side(images: Tensor, size: int, resize: Callable[[Tensor, int, int], Tensor] = resize) -> Tensor:
    """Shorter side resized to `size`, centre cut out: [N, 3, H, W] -> [N, 3, size, size].

    Sizes and offsets round as torchvision's Resize and CenterCrop do.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    height, width = size * height // short, size * width // short
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize(images, height, width)[..., top : top + size, left : left + size]


def clip_protocol(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """OpenAI CLIP's preparation, which the aesthetic predictors and ImageReward share.

    Images [N, 3, H, W] in [0, 1] -> [N, 3, size, size]: shorter side by Pillow's bicubic resize, centre, normalised.
    """
    return normalise(shorter_side(images, size, pillow_resize), mean, std)


def hps_protocol(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """HPSv2's preparation: the longer side is resized to `size` and the rest filled with black.

    Images [N, 3, H, W] in [0, 1] -> [N, 3, size, size]. The published code resizes after the conversion to float,
    so overshoots of the resize are kept. Square images, which is all that RankE draws, get no filling.
    """
    scale = size / max(images.shape[-2:])
    height, width = round(images.shape[-2] * scale), round(images.shape[-1] * scale)
    images = resize(round_to_levels(images * 255) / 255, height, width)
    below, right = size - height, size - width
    images = F.pad(images, (right // 2, right - right // 2, below // 2, below - below // 2))
    return normalise(images, mean, std)
