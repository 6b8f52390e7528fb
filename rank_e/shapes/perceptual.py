"""The embedded world's perceptual distance: early feature maps of the reward CLIP, as LPIPS takes VGG's."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rank_e.precision import channels_last, float32_island
from rank_e.rewards.preprocessing import normalise
from rank_e.shapes import clip
from rank_e.shapes.backbone import load_world_clip

STAGES = [0, 1]  # the stem and the first residual stage: edges and texture, not meaning


class FeatureDistance:
    """d(a, b) = mean squared distance of unit-normalised features, averaged over depths.

    Images [N, 3, H, W] in [0, 1] -> scalar >= 0, zero for equal images; differentiable in both. The evaluator's
    network takes no part, so what is optimised here is not what is evaluated there.
    """

    def __init__(self, clip: Any) -> None:
        self.tower = clip.visual

    def features(self, images: Tensor) -> list[Tensor]:
        """Unit feature vectors [N, C, h, w] of each of STAGES, at the images' own size."""
        inputs = channels_last(normalise(images, self.tower.image_mean, self.tower.image_std))
        stages = self.tower.forward_intermediates(inputs, indices=STAGES, stop_early=True, intermediates_only=True)
        with float32_island(images.device):  # small differences of features are formed in float32
            return [F.normalize(maps.float(), dim=1, eps=1e-6) for maps in stages["image_intermediates"]]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.features(a), self.features(b), strict=True)
        return torch.stack([(x - y).square().sum(1).mean() for x, y in pairs]).mean()


def perceptual(folder: Path, device: torch.device) -> FeatureDistance:
    """A distance by the reward CLIP's early features."""
    return FeatureDistance(load_world_clip(folder, "reward", clip.REWARD, device))
