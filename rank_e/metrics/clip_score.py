"""The independent judge: a CLIP that no update has seen, and its score."""

from __future__ import annotations

import torch
from torch import Tensor

from rank_e.rewards.clip import ClipModel, ClipReward, Tokenize


class Evaluator:
    """An open_clip `model` in eval mode with its `tokenize`; every network metric of a suite comes from
    one of these.
    """

    def __init__(self, model: ClipModel, tokenize: Tokenize) -> None:
        self.model = model
        self._score = ClipReward(model, tokenize, name="clip score")

    @torch.no_grad()
    def clip_score(self, pictures: Tensor, prompts: list[str], batch_size: int = 128) -> Tensor:
        """100 cos(picture, prompt) float32 [N] in [-100, 100]; pictures [N, 3, H, W] in [0, 1].

        Not cut off at zero (Hessel et al., 2021, do), as the paper's CLIP column is not. Raises RewardError
        where a score is not finite.
        """
        if len(pictures) != len(prompts):
            return self._score(pictures, prompts)  # raises, naming both numbers
        starts = range(0, len(prompts), batch_size)
        parts = [self._score(pictures[i : i + batch_size], prompts[i : i + batch_size]) for i in starts]
        return torch.cat(parts).cpu()
