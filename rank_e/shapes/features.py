"""Features whose distributions are compared: an evaluator's late and middle ones, and local ones of patches."""

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
SCALE = 10.0  # of every feature, so that distances (which grow with its square) have readable digits
_RULER_SEED = 0  # the patch network is a ruler: the same for every run, so that its distances can be compared


def spatial_statistics(maps: Tensor) -> Tensor:
    """Feature maps [N, C, h, w] -> [N, 2 C]: mean and standard deviation over the positions of each channel."""
    flat = maps.flatten(2)
    return torch.cat([flat.mean(2), flat.std(2, correction=0)], dim=1)


class EvaluatorFeatures(NamedTuple):
    """What one pass gives: last [N, C] and middle [N, 2 C'] on the CPU, embedding [N, D] on the model's device."""

    last: Tensor
    middle: Tensor
    embedding: Tensor


@torch.no_grad()
def evaluator_features(model: ClipModel, images: Tensor, batch_size: int = 128) -> EvaluatorFeatures:
    """Penultimate and mid-level features and the image embedding (float32) of images in [0, 1].

    Any open_clip visual tower: penultimate is the last stage (block) averaged over the image, before the projection
    into the text's space; mid-level is the middle stage's `spatial_statistics`, which sees texture and edges.
    """
    last, middle, embedding = [], [], []
    for batch in images.split(batch_size):
        stages = model.visual.forward_intermediates(clip_inputs(model, batch))
        maps = stages["image_intermediates"]
        last.append(SCALE * maps[-1].mean((2, 3)))
        middle.append(SCALE * spatial_statistics(maps[len(maps) // 2]))
        embedding.append(stages["image_features"])
    return EvaluatorFeatures(
        torch.cat(last).float().cpu(), torch.cat(middle).float().cpu(), torch.cat(embedding).float()
    )


class PatchNet(nn.Module):
    """A fixed random convolution network over single patches: local texture, blind to layout and to meaning.

    Patches [M, 3, 16, 16] in [0, 1] -> features [M, 64]. He-initialised from a fixed seed and never trained. Each
    patch's mean colour is removed first: it varies most between real images, so its sampling noise would drown
    texture, and the evaluator's features see colour well.
    """

    dim = 64

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, self.dim)
        random = generator(_RULER_SEED, "patch network")
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            scale = (2 / (9 * inputs)) ** 0.5
            self.register_buffer(f"weight{layer}", torch.randn(outputs, inputs, 3, 3, generator=random) * scale)

    def forward(self, patches: Tensor) -> Tensor:
        x = (patches - patches.mean((2, 3), keepdim=True)) / 0.25
        for layer, weight in enumerate(self.buffers()):
            x = F.relu(F.conv2d(x, weight, stride=1 if layer == 0 else 2, padding=1))
        return SCALE * x.mean((2, 3))


def patches_of(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] in patches side by side: [N, P, 3, 16, 16], row by row; a remainder is left out.

    Random places would move the distance of 512 images by as much as an arm does, and places chosen for a batch would
    make it depend on the batch. Raises RankEError for images smaller than a patch.
    """
    height, width = images.shape[2:]
    if min(height, width) < PATCH:
        raise RankEError(f"patches_of: images of {height} x {width} pixels; they need {PATCH} x {PATCH} at least")
    cut = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


@torch.no_grad()
def patch_features(net: PatchNet, images: Tensor, batch_size: int = 128) -> Tensor:
    """`net`'s features of `patches_of`, float32 [N, P, 64], on the device of both."""
    batches = [patches_of(batch) for batch in images.split(batch_size)]
    return torch.cat([net(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]) for patches in batches])
