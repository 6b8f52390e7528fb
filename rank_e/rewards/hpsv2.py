"""HPSv2 and HPSv2.1 (Wu et al., 2023): a CLIP fine-tuned on human preference; its cosine, about 0.2 to 0.3."""

from __future__ import annotations

from pathlib import Path

import torch

from rank_e.rewards.clip import ClipReward
from rank_e.rewards.open_clip_models import model_within, shared_clip
from rank_e.rewards.preprocessing import hps_protocol


def hpsv2_reward(folder: Path, device: torch.device, *, file: str, model: str) -> ClipReward:
    """cos(image, prompt) by the open_clip `model` with the published weights of `file`, in HPSv2's preparation."""
    network, tokenize = shared_clip(model_within(folder, model), folder / file, device)
    return ClipReward(network, tokenize, name="hpsv2", scale=1.0, prepare=hps_protocol)
