"""The embedded world's perceptual distance: early tokens of the reward CLIP's vision transformer, as in LPIPS."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LAYERS = 2  # after the patch embedding and each of the first LAYERS - 1 blocks: local structure, not meaning


class Perceptual:
    """d(a, b) = mean squared distance of unit-normalised features, averaged over depths.

    Pictures [N, 3, H, W] in [0, 1] -> scalar >= 0, zero for equal pictures; differentiable in both. The evaluator's
    network takes no part, so what is optimised here is not what is judged there.
    """

    def __init__(self, clip: Any) -> None:
        self.visual = clip.visual
        self.mean = torch.tensor(self.visual.image_mean).view(3, 1, 1)
        self.std = torch.tensor(self.visual.image_std).view(3, 1, 1)

    def features(self, pictures: Tensor) -> list[Tensor]:
        tower = self.visual
        x = tower.conv1((pictures - self.mean.to(pictures)) / self.std.to(pictures)).flatten(2).transpose(1, 2)
        depths = [x]
        x = tower.ln_pre(x + tower.positional_embedding[1:])
        for block in list(tower.transformer.resblocks)[: LAYERS - 1]:
            x = block(x)
            depths.append(x)
        return [F.normalize(depth, dim=-1, eps=1e-6) for depth in depths]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.features(a), self.features(b), strict=True)
        return torch.stack([(x - y).square().sum(-1).mean() for x, y in pairs]).mean()
