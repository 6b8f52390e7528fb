"""The embedded world's reward, as the factory that `params.yaml` names."""

from pathlib import Path

import torch

from rank_e.rewards.clip import ClipReward
from rank_e.shapes import clip
from rank_e.shapes.backbone import load_world_clip


def clip_reward(folder: Path, device: torch.device) -> ClipReward:
    """100 cos(image, prompt) by the reward's CLIP."""
    return ClipReward(load_world_clip(folder, "reward", clip.REWARD, device), clip.tokenize)
