"""The paper's released code beside ours: a folder with its checkout, and LlamaGen's `tokenizer/` and `utils/` in it.

Its networks are built with random weights at our sizes; nothing of it is copied. Only what it cannot import here is
stood in for: its text encoder, and PyTorch's renamed attention switch.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.networks import random_text
from rank_e.backbones.llamagen.policy import PolicyConfig
from rank_e.sampling.distribution import SamplingConfig


def open_reference(folder: Path) -> None:
    """Put the checkout on the path; ModuleNotFoundError later names what it lacks."""
    if not (folder / "autoregressive" / "models" / "gpt.py").is_file():
        sys.exit(f"--reference {folder}: no autoregressive/models/gpt.py in it; give the reference's checkout")
    sys.path.insert(0, str(folder))
    for name in ("language", "language.t5"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["language.t5"].T5Embedder = object  # type: ignore[attr-defined]
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # Gone from PyTorch; the reference asks it for the plain kernel.
    torch.backends.cuda.sdp_kernel = lambda **_: sdpa_kernel([SDPBackend.MATH])  # type: ignore[attr-defined]


def reference_policy(config: PolicyConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Its transformer at one of our sizes, random weights, in eval mode."""
    from autoregressive.models.gpt import ModelArgs, Transformer  # type: ignore[import-not-found]

    with torch.device(device):
        model = Transformer(
            ModelArgs(
                dim=config.dim,
                n_layer=config.n_layer,
                n_head=config.n_head,
                multiple_of=config.multiple_of,
                vocab_size=config.vocab_size,
                block_size=config.block_size,
                cls_token_num=config.cls_token_num,
                caption_dim=config.caption_dim,
                model_type="t2i",
            )
        )
        torch.nn.init.normal_(model.output.weight, std=0.02)
        # It has 120 rows whatever `cls_token_num` says.
        model.cls_embedding.uncond_embedding = torch.randn(config.cls_token_num, config.caption_dim)
    return model.to(dtype).eval()


def reference_sampling(
    model: Any, text: Tensor, mask: Tensor, repeats: int, config: SamplingConfig
) -> Callable[[], Tensor]:
    """Its `generate` for each prompt's `repeats` samples; the key-value cache is dropped afterwards."""
    from autoregressive.models.generate import generate  # type: ignore[import-not-found]

    text, mask = text.repeat_interleave(repeats, 0), mask.long().repeat_interleave(repeats, 0)

    def run() -> Tensor:
        tokens: Tensor = generate(
            model,
            text,
            model.block_size,
            emb_masks=mask,
            cfg_scale=config.guidance,
            temperature=config.temperature,
            top_k=config.top_k,
            sample_logits=True,
        )
        for block in model.layers:
            block.attention.kv_cache = None
        return tokens

    return run


class _NoText(torch.nn.Module):
    """Stands for the reference's T5: the text of as many prompts as it is asked for."""

    def __init__(self, config: PolicyConfig, device: torch.device) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        self.config, self.place = config, device

    def get_text_embeddings(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        text, mask = random_text(len(prompts), self.config, self.place, torch.float32)
        return text, mask.long()


class _Reward(torch.nn.Module):
    """The reference's differentiable CLIP preprocessing in front of a random ViT-L/14."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        config = CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 14}, projection_dim=768)
        with torch.device(device):
            self.clip = CLIPModel(config).eval().requires_grad_(False)

    def forward(self, images: Tensor, texts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = F.interpolate(images, size=(224, 224), mode="bilinear", align_corners=False)
        ids = torch.ones(len(texts), 77, dtype=torch.int64, device=images.device)
        ids[:, -1] = 2
        image, text = self.clip.get_image_features(pixel_values=pixels), self.clip.get_text_features(input_ids=ids)
        image, text = (found if isinstance(found, Tensor) else found.pooler_output for found in (image, text))
        scores = 100 * (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(-1)
        return scores, {"clip_score": scores}


class ReferenceTrainer:
    """Its trainer with random networks: 4 prompts x 8 rollouts, its own batch, under bf16 autocast and TF32."""

    prompts, group = 4, 8

    def __init__(self, config: PolicyConfig, device: torch.device) -> None:
        import torchvision  # type: ignore[import-not-found]

        # It would download VGG16; its speed does not depend on the weights.
        plain = torchvision.models.vgg16
        torchvision.models.vgg16 = lambda pretrained=False, **_: plain(weights=None)
        import tokenizer.tokenizer_image.lpips as lpips_of_theirs  # type: ignore[import-not-found]

        lpips_of_theirs.LPIPS.load_from_pretrained = lambda self, name="vgg_lpips": None
        from accelerate import Accelerator  # type: ignore[import-not-found]
        from autoregressive.post_train.trainer import (  # type: ignore[import-not-found]
            HybridRLTrainer,
            HybridTrainConfig,
        )
        from tokenizer.tokenizer_image.vq_model import ModelArgs, VQModel  # type: ignore[import-not-found]

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        ratios = [1, 1, 2, 2, 4]
        sizes = {"encoder_ch_mult": ratios, "decoder_ch_mult": ratios, "codebook_size": config.vocab_size}
        with torch.device(device):
            tokenizers = [VQModel(ModelArgs(**sizes, codebook_embed_dim=8)).eval() for _ in range(2)]
        tokenizers[1].requires_grad_(False)
        self.settings = HybridTrainConfig(
            train_mode="both",
            group_size=self.group,
            batch_size=self.prompts,
            grpo_epochs=1,
            rollout_length=config.block_size,
            gradient_checkpointing=True,
            lambda_decoder_reward=0.01,
            lambda_decoder_gan=1.0,
            lambda_reconstruction=1.0,
            lambda_decoder_consistency=10.0,
            disc_start=0,
            disc_weight=0.5,
            disc_type="patchgan",
            rejection_sample_k=1,
            gen_cfg_scale=6.0,
            gen_top_k=1000,
            codebook_embed_dim=8,
        )
        policies = [reference_policy(config, device, torch.float32) for _ in range(2)]
        self.trainer = HybridRLTrainer(
            policies[0],
            tokenizers[0],
            _Reward(device),
            _NoText(config, device),
            self.settings,
            Accelerator(mixed_precision="bf16"),
            ema_gpt_model=policies[1],
            ema_vq_model=tokenizers[1],
        )
        self.names = [f"a prompt {index}" for index in range(self.prompts)]
        self.rollouts: Any = None

    def roll(self) -> None:
        """Sample, score twice, decode, reward; kept for the updates."""
        self.rollouts = self.trainer.generate_rollouts(self.names)

    def update_policy(self) -> None:
        """One update of 32 rollouts, scored without guidance and without a reference policy."""
        self.trainer.update_gpt_policy(self.rollouts, 500)

    def update_decoder(self, images: Tensor, keep: int) -> None:
        """One update with `keep` rollouts of each prompt and as many real images [N, 3, H, W] in [-1, 1]."""
        self.settings.rejection_sample_k = keep
        self.trainer.update_decoder(self.rollouts, images, 500)

    def reward(self, images: Tensor) -> Tensor:
        """CLIP scores of images in [0, 1]."""
        with torch.no_grad():
            scores: Tensor = self.trainer.reward_model(images, ["x"] * len(images))[0]
        return scores
