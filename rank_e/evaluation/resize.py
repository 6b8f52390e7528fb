"""One named function per resize protocol. All go through PIL, whose filters are antialiased, as the published
evaluations do; nothing here is differentiable, and images are uint8 [3, H, W] on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rank_e.io.pixels import from_bytes

INCEPTION_SIZE = 299


def _pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _bytes(pil: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(pil)).permute(2, 0, 1).contiguous()


def _centre(pil: Image.Image, size: int) -> Image.Image:
    """The centre square; an odd margin is split as torchvision's `center_crop` does (round half to even)."""
    left, top = (round((length - size) / 2) for length in pil.size)
    return pil.crop((left, top, left + size, top + size))


def square_lanczos(image: Tensor, size: int = 256) -> Tensor:
    """The published text-to-image FID protocol (GigaGAN's evaluation of COCO): the long edge is cut to the centre
    square, which is resized by Lanczos to uint8 [3, size, size].
    """
    pil = _pil(image)
    pil = _centre(pil, min(pil.size))
    return _bytes(pil.resize((size, size), Image.Resampling.LANCZOS))


def clean_fid(image: Tensor) -> Tensor:
    """clean-fid's "clean" mode: each channel bicubic in float, not rounded after; float32 [3, 299, 299] in [0, 255]."""
    target = (INCEPTION_SIZE, INCEPTION_SIZE)
    channels = [
        np.asarray(Image.fromarray(channel.float().cpu().numpy()).resize(target, Image.Resampling.BICUBIC))
        for channel in image
    ]
    return torch.from_numpy(np.stack(channels)).clamp(0, 255)


def clip_bicubic(image: Tensor, size: int) -> Tensor:
    """OpenAI CLIP's preprocessing before normalisation: the shorter side bicubic to `size` (the longer one rounded
    down), the centre square; float32 [3, size, size] in [0, 1].
    """
    pil = _pil(image)
    short = min(pil.size)
    width, height = (size if length == short else int(size * length / short) for length in pil.size)
    pil = pil.resize((width, height), Image.Resampling.BICUBIC)
    return from_bytes(_bytes(_centre(pil, size)))


def squash_bicubic(image: Tensor, size: int) -> Tensor:
    """dgm-eval's preprocessing for DINOv2: bicubic, whatever the shape, to float32 [3, size, size] in [0, 1]."""
    return from_bytes(_bytes(_pil(image).resize((size, size), Image.Resampling.BICUBIC)))


def squares(images: list[Tensor], size: int) -> Tensor:
    """Real images (uint8 [3, H, W]) at the size of a generator's: uint8 [N, 3, size, size], by `square_lanczos`."""
    return torch.stack([square_lanczos(image, size) for image in images])
