"""Seeded tiny networks of GenEval's two kinds, in the official formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from rank_e.evaluation.geneval.tasks import CLASS_NAMES
from rank_e.io.torchvision_ops import declare_torchvision_ops, import_open_clip

declare_torchvision_ops()
CPU = torch.device("cpu")
COCO = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).copy()


def write_mask2former(path: Path) -> Path:
    """A seeded tiny Mask2Former in the folder `path`, written by transformers as its hub folders are."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin = SwinConfig(  # type: ignore[call-arg]
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin.to_dict(), feature_size=32, mask_feature_size=32, hidden_dim=32, dim_feedforward=32,
        encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12,
        id2label={i: COCO.get(name, name) for i, name in enumerate(CLASS_NAMES)},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mask2FormerForUniversalSegmentation(config)
        torch.nn.init.normal_(model.class_predictor.weight, std=2)  # decided classes, so that objects are found
    model.save_pretrained(path)
    return path


def write_clip(path: Path) -> Path:
    """clip.safetensors in the folder `path`: a seeded tiny CLIP with OpenAI's tokens, in half precision as OpenAI's
    file is. open_clip then knows its model as "Tiny-quickgelu".
    """
    open_clip = import_open_clip()
    (path / "Tiny-quickgelu.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(path / "Tiny-quickgelu.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = open_clip.create_model("Tiny-quickgelu")
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, path / "clip.safetensors")
    return path / "clip.safetensors"
