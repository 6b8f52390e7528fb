"""Networks with random weights at published sizes, and inputs for them."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rank_e.backbones.janus.policy import JanusPolicy, SpecialTokens
from rank_e.backbones.llamagen.policy import LLAMAGEN, Policy, PolicyConfig
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.io.torchvision_ops import import_open_clip
from rank_e.rewards.clip import ClipReward
from rank_e.rewards.mixture import Mixture
from rank_e.rewards.preprocessing import clip_protocol
from rank_e.training.decoder_update import Nets
from rank_e.training.lpips_vgg import LpipsVGG
from rank_e.training.patchgan import PatchGAN
from rank_e.training.ranked_images import RankedImages

SPECIAL = SpecialTokens(bos=100000, boi=100016, pad=100015)


def llamagen_config(size: str, length: int = 256) -> PolicyConfig:
    """LlamaGen's text-to-image policy of a named size."""
    return PolicyConfig(**LLAMAGEN[size], vocab_size=16384, block_size=length, cls_token_num=120, caption_dim=2048)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks and of what is asked of them: `prompts` x 8 samples at once, the first as the reference."""

    policy: PolicyConfig
    janus_text: dict[str, int]
    janus_vq: dict[str, int]
    tokenizer: TokenizerConfig
    clip: str
    prompts: tuple[int, ...]
    images: int
    probe: int


PUBLISHED = Sizes(
    policy=llamagen_config("XL"),
    janus_text={"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16},
    janus_vq={"projection_dim": 2048, "image_token_embed_dim": 2048, "num_embeddings": 16384, "num_patches": 24},
    tokenizer=TokenizerConfig(256, 128, (1, 1, 2, 2, 4), 2, 256, 16384, 8),
    clip="ViT-L-14-quickgelu",
    prompts=(4, 16, 64, 128),
    images=32,
    probe=8192,
)
SMALL = Sizes(
    policy=PolicyConfig(32, 2, 2, vocab_size=64, block_size=16, cls_token_num=12, caption_dim=16, multiple_of=32),
    janus_text={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    janus_vq={"projection_dim": 32, "image_token_embed_dim": 32, "num_embeddings": 64, "num_patches": 4},
    tokenizer=TokenizerConfig(32, 32, (1, 1, 1, 1), 1, 32, 64, 8),
    clip="RN50",
    prompts=(1,),
    images=4,
    probe=256,
)
"""So that the whole script can be tried without a GPU."""


def random_policy(config: PolicyConfig, device: torch.device, dtype: torch.dtype) -> Policy:
    """Weights of std 0.02, drawn on the device; in eval mode."""
    with torch.device("meta"):
        policy = Policy(config)
    policy = policy.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, 0.02, generator=generator)
    return policy.eval()


def random_text(count: int, config: PolicyConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features [count, T, C] and masks of 10 to 39 valid rows, or all there are, left-padded."""
    rows = config.cls_token_num
    lengths = (10 + (7 * torch.arange(count)) % 30).clamp(max=rows)
    mask = torch.arange(rows) >= rows - lengths[:, None]
    text = 0.1 * torch.randn(count, rows, config.caption_dim, generator=torch.Generator().manual_seed(1))
    return (text * mask[..., None]).to(device, dtype), mask.to(device)


def parameters_of(module: torch.nn.Module) -> int:
    """How many numbers a network holds."""
    return sum(weight.numel() for weight in module.parameters())


def janus_policy(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> JanusPolicy:
    """Janus-Pro's policy, weights of std 0.02."""
    from transformers import JanusConfig

    text = {**sizes.janus_text, "num_key_value_heads": sizes.janus_text["num_attention_heads"], "model_type": "llama"}
    text |= {"vocab_size": 102400, "max_position_embeddings": 16384}
    config = JanusConfig(text_config=text, vq_config={**sizes.janus_vq, "embed_dim": 8, "num_hidden_layers": 2})
    embedding = torch.zeros(102400, sizes.janus_text["hidden_size"], device="meta")
    with torch.device("meta"):
        policy = JanusPolicy(config, SPECIAL, embedding)
    policy = policy.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        policy.text_embedding.normal_(0.0, 0.02, generator=generator)
        for weight in policy.parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, 0.02, generator=generator)
    return policy.eval()


def janus_text(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and masks of `count` prompts of 40 ids."""
    ids = torch.randint(1000, 90000, (count, 40), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = SPECIAL.bos, SPECIAL.boi
    return ids.to(device), torch.ones(count, 40, dtype=torch.bool, device=device)


def tokenizer(sizes: Sizes, device: torch.device) -> Tokenizer:
    """The VQ autoencoder, fresh weights, float32."""
    return Tokenizer(sizes.tokenizer).initialise(torch.Generator().manual_seed(3)).to(device).eval()


def lpips(device: torch.device) -> LpipsVGG:
    """LPIPS on a VGG16 with random weights."""
    from safetensors.torch import save_file

    sizes = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    generator, before, tensors = torch.Generator().manual_seed(4), 3, {}
    for place, width in zip(places, sizes, strict=True):
        spread = (2 / (9 * before)) ** 0.5
        tensors[f"features.{place}.weight"] = spread * torch.randn(width, before, 3, 3, generator=generator)
        tensors[f"features.{place}.bias"] = torch.zeros(width)
        before = width
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vgg16.safetensors"
        save_file(tensors, file)
        return LpipsVGG(file, device)


def clip_reward(sizes: Sizes, device: torch.device) -> ClipReward:
    """A CLIP reward with fresh weights; every prompt has the same ids."""
    open_clip = import_open_clip()
    with device:  # weights are drawn where they are used
        network = open_clip.create_model(sizes.clip, pretrained=None, device=device).eval().requires_grad_(False)
    return ClipReward(network, lambda texts: torch.ones(len(texts), 77, dtype=torch.int64), prepare=clip_protocol)


def decoder_nets(vq: Tokenizer, reward: Mixture, perceptual: LpipsVGG, device: torch.device) -> Nets:
    """Stage 2's networks: two copies of the tokenizer, and the paper's PatchGAN."""
    patchgan = PatchGAN(64, 3).initialise(torch.Generator().manual_seed(5)).to(device)
    return Nets(deepcopy(vq), deepcopy(vq), patchgan, reward, perceptual)


def ranked_images(config: TokenizerConfig, count: int) -> RankedImages:
    """8 prompts with 8 random rollouts each, of the same rank, and `count` real images of noise."""
    draw = torch.Generator().manual_seed(6)
    tokens = torch.randint(config.codebook_size, (8, 8, config.grid**2), generator=draw)
    reals = torch.rand(count, 3, config.image_size, config.image_size, generator=draw)
    return RankedImages(tokens, torch.ones(8, 8), ["a prompt"] * 8, reals)
