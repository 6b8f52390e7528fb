"""ImageReward's published files at toy size: the shapes, words and weights of the golden scores."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "imagereward.json").read_text())


def draw(key: str, shape: list[int]) -> Tensor:
    """The weights that the golden scores were computed with: numpy's legacy generator never changes."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    noise = np.random.RandomState(seed).standard_normal(shape)
    if len(shape) == 1:
        return torch.from_numpy((("norm" in key.lower() and key.endswith("weight")) + 0.3 * noise).astype("float32"))
    return torch.from_numpy((1.5 * noise / shape[-1] ** 0.5).astype("float32"))


def write_imagereward(folder: Path) -> None:
    """ImageReward.pt and vocab.txt, for images of 32 pixels."""
    torch.save(
        {k: torch.arange(s[1])[None] if k.endswith("position_ids") else draw(k, s) for k, s in GOLDEN["tiny"].items()},
        folder / "ImageReward.pt",
    )
    (folder / "vocab.txt").write_text("\n".join(GOLDEN["vocabulary"]) + "\n")
