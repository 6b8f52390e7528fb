"""Features whose distributions are compared: an evaluator's late and middle ones, and random patches'
local ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rank_e.errors import RankEError
from rank_e.rewards.clip import ClipModel, clip_inputs
from rank_e.seeds import generator

PATCH = 16
PATCHES_PER_PICTURE = 8
SCALE = 10.0  # of every feature, so that distances (which grow with its square) have readable digits
_RULER_SEED = 0  # the patch network is a ruler: the same for every run, so that its distances can be compared


def spatial_statistics(maps: Tensor) -> Tensor:
    """Feature maps [N, C, h, w] -> [N, 2 C]: mean and standard deviation over the positions of each
    channel.
    """
    flat = maps.flatten(2)
    return torch.cat([flat.mean(2), flat.std(2, correction=0)], dim=1)


class EvaluatorFeatures(NamedTuple):
    """What one pass gives: last [N, C] and middle [N, 2 C'] on the CPU, embedding [N, D] on the model's device."""

    last: Tensor
    middle: Tensor
    embedding: Tensor


@torch.no_grad()
def evaluator_features(model: ClipModel, pictures: Tensor, batch_size: int = 128) -> EvaluatorFeatures:
    """Penultimate and mid-level features and the image embedding (float32) of pictures in [0, 1].

    Any open_clip visual tower: penultimate is the last stage (block) averaged over the picture, before the
    projection into the text's space; mid-level is the middle stage's `spatial_statistics`, which sees texture
    and edges.
    """
    last, middle, embedding = [], [], []
    for part in pictures.split(batch_size):
        stages = model.visual.forward_intermediates(clip_inputs(model, part))
        maps = stages["image_intermediates"]
        last.append(SCALE * maps[-1].mean((2, 3)))
        middle.append(SCALE * spatial_statistics(maps[len(maps) // 2]))
        embedding.append(stages["image_features"])
    return EvaluatorFeatures(
        torch.cat(last).float().cpu(), torch.cat(middle).float().cpu(), torch.cat(embedding).float()
    )


class PatchNet(nn.Module):
    """A fixed random convolution network over single patches: local texture, blind to layout and to meaning.

    Patches [M, 3, 16, 16] in [0, 1] -> features [M, 64]. He-initialised from a fixed seed and never trained.
    Each patch's mean colour is removed first: it varies most between real pictures, so its sampling noise
    would drown texture, and the evaluator's features see colour well.
    """

    dim = 64

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, self.dim)
        draw = generator(_RULER_SEED, "patch network")
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            scale = (2 / (9 * inputs)) ** 0.5
            self.register_buffer(f"weight{layer}", torch.randn(outputs, inputs, 3, 3, generator=draw) * scale)

    def forward(self, patches: Tensor) -> Tensor:
        x = (patches - patches.mean((2, 3), keepdim=True)) / 0.25
        for layer, weight in enumerate(self.buffers()):
            x = F.relu(F.conv2d(x, weight, stride=1 if layer == 0 else 2, padding=1))
        return SCALE * x.mean((2, 3))


def random_patches(pictures: Tensor, seed: int, count: int = PATCHES_PER_PICTURE) -> Tensor:
    """`count` patches of each picture [N, 3, H, W] at places drawn from `seed`: [N, count, 3, 16, 16].

    Raises RankEError for pictures smaller than a patch.
    """
    n, channels, height, width = pictures.shape
    if min(height, width) < PATCH:
        raise RankEError(f"random_patches: pictures of {height} x {width} pixels; they need {PATCH} x {PATCH} at least")
    draw = generator(seed, "patch places")
    tops = torch.randint(height - PATCH + 1, (n, count), generator=draw)
    lefts = torch.randint(width - PATCH + 1, (n, count), generator=draw)
    span = torch.arange(PATCH)
    rows = (tops[..., None] + span)[:, :, None, :, None]
    cols = (lefts[..., None] + span)[:, :, None, None, :]
    picture = torch.arange(n).view(n, 1, 1, 1, 1)
    channel = torch.arange(channels).view(1, 1, channels, 1, 1)
    return pictures[picture, channel, rows, cols]


@torch.no_grad()
def patch_features(pictures: Tensor, seed: int, batch_size: int = 128) -> Tensor:
    """PatchNet features of `random_patches`, float32 [N, PATCHES_PER_PICTURE, 64]."""
    patches = random_patches(pictures.cpu(), seed)
    net = PatchNet()
    features = [net(part.flatten(0, 1)) for part in patches.split(batch_size)]
    return torch.cat(features).view(len(pictures), PATCHES_PER_PICTURE, PatchNet.dim)
