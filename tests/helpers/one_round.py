"""One small round on random weights, step by step, at toy or published size, on any device: no files, no stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rank_e.backbones.llamagen.policy import LLAMAGEN, Policy, PolicyConfig
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.backbones.protocol import PolicyModel
from rank_e.io.pixels import from_signed
from rank_e.io.torchvision_ops import import_open_clip
from rank_e.objectives.grpo import group_advantages
from rank_e.objectives.rank_gan import rank_weights
from rank_e.rewards.clip import ClipReward
from rank_e.rewards.preprocessing import OPENAI_MEAN, OPENAI_STD, clip_protocol
from rank_e.sampling.distribution import SampledTokens, SamplingConfig
from rank_e.sampling.sampler import Sampler
from rank_e.seeds import generator
from rank_e.training.decoder_update import DecoderUpdate, Nets
from rank_e.training.lpips_vgg import LpipsVGG
from rank_e.training.patchgan import PatchGAN
from rank_e.training.policy_update import PolicyUpdate, Rollouts
from rank_e.training.ranked_images import RankedImages
from tests.helpers import official, tiny_janus
from tests.helpers.tiny_nets import decoder_params, policy_params

Kind = Literal["llamagen", "janus"]
Size = Literal["toy", "published"]
PROMPTS = ["a red cat", "two dogs on a bench"]
GROUP = 2
CONFIG = SamplingConfig(guidance=3.0, top_k=48)
VQ16 = TokenizerConfig(256, 128, (1, 1, 2, 2, 4), 2, 256, 16384, 8)  # LlamaGen's at 256 px; Janus's at 384
JANUS_1B: dict[str, Any] = {
    "text_config": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 102400,
        "max_position_embeddings": 16384,
    },
    "vision_config": {"hidden_size": 1024, "image_size": 384, "patch_size": 16, "projection_dim": 2048},
    "vq_config": {
        "embed_dim": 8,
        "num_embeddings": 16384,
        "latent_channels": 256,
        "base_channels": 128,
        "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "projection_dim": 2048,
        "image_token_embed_dim": 2048,
        "num_patches": 24,
    },
}


def randomised(module: nn.Module, device: torch.device, dtype: torch.dtype, name: str) -> Any:
    """`module`, built on the meta device, on `device`: gains 1, all else normal with a std of fan_in^-0.5."""
    module = module.to(dtype).to_empty(device=device).eval()
    draw = torch.Generator(device).manual_seed(len(name))
    with torch.no_grad():
        for buffer in module.buffers():  # Janus's text embedding
            buffer.normal_(0.0, 0.02, generator=draw)
        for key, weight in module.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if key.endswith("bias") else 1.0)
            else:
                weight.normal_(0.0, weight[0].numel() ** -0.5, generator=draw)
    return module


@dataclass(frozen=True)
class OneRound:
    """Two prompts with two rollouts each; every step begins at the same weights."""

    kind: Kind
    size: Size
    device: torch.device
    dtype: torch.dtype
    vgg16: Path
    """torchvision's file, for LPIPS."""

    def policy(self, name: str = "policy") -> PolicyModel:
        """The policy of this name, the same at every call."""
        with torch.device("meta"):
            policy = self._llamagen() if self.kind == "llamagen" else self._janus()
        made: PolicyModel = randomised(policy, self.device, self.dtype, name)
        return made

    def _llamagen(self) -> Policy:
        if self.size == "toy":
            return Policy(official.POLICY)
        text = {"cls_token_num": 120, "caption_dim": 2048}
        return Policy(PolicyConfig(**LLAMAGEN["XL"], vocab_size=16384, block_size=256, **text))

    def _janus(self) -> Any:
        from transformers import JanusConfig

        from rank_e.backbones.janus.policy import JanusPolicy, SpecialTokens

        config = tiny_janus.config() if self.size == "toy" else JanusConfig(**JANUS_1B)
        text: Any = config.text_config
        embedding = torch.empty(text.vocab_size, text.hidden_size)
        return JanusPolicy(config, SpecialTokens(*self._special), embedding)

    @property
    def _special(self) -> tuple[int, int, int]:
        """Janus's begin of sentence, begin of image, padding."""
        return (0, 4, 2) if self.size == "toy" else (100000, 100016, 100015)

    @cached_property
    def text(self) -> tuple[Tensor, Tensor]:
        """What the policy reads of the prompts, and its mask, left-padded: the first is shorter."""
        mask = torch.ones(len(PROMPTS), 6, dtype=torch.bool)
        mask[0, :2] = False
        if self.kind == "llamagen":
            width = official.POLICY.caption_dim if self.size == "toy" else 2048
            return torch.randn(*mask.shape, width, generator=generator(0, "text")) * mask[..., None], mask
        bos, boi, pad = self._special
        ids = torch.randint(6, 200, mask.shape, generator=generator(0, "text")).masked_fill(~mask, pad)
        ids[:, -1] = boi
        return ids.masked_fill(mask & (mask.cumsum(1) == 1), bos), mask

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, float32, the same at every call."""
        sizes = VQ16 if self.kind == "llamagen" else TokenizerConfig(**{**vars(VQ16), "image_size": 384})
        if self.size == "toy":
            sizes = official.TOKENIZER if self.kind == "llamagen" else TokenizerConfig(16, 32, (1, 1, 1), 1, 32, 64, 8)
        with torch.device("meta"):
            tokenizer = Tokenizer(sizes)
        made: Tokenizer = randomised(tokenizer, self.device, torch.float32, "tokenizer")
        return made

    @cached_property
    def reward(self) -> ClipReward:
        """A CLIP with random weights in OpenAI's preparation: ViT-L/14 at 224 px, or a toy."""
        open_clip = import_open_clip()
        config = official.CLIP if self.size == "toy" else open_clip.get_model_config("ViT-L-14-quickgelu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = open_clip.CLIP(**config).eval().requires_grad_(False).to(self.device)
        model.visual.image_mean, model.visual.image_std = OPENAI_MEAN, OPENAI_STD
        return ClipReward(model, open_clip.SimpleTokenizer(), prepare=clip_protocol)

    def sample(self) -> SampledTokens:
        """Rollouts [4, L]."""
        seeds = range(len(PROMPTS) * GROUP)
        return Sampler(self.policy(), CONFIG, len(seeds), fast=True)(*self.text, seeds, GROUP)

    @torch.no_grad()
    def rank(self, tokens: Tensor) -> Tensor:
        """Rewards [2, 2] of the rollouts' images."""
        images = from_signed(self.tokenizer().decode_tokens(tokens)).clamp(0, 1)
        prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
        return self.reward(images, prompts).view(len(PROMPTS), GROUP).cpu()

    def update_policy(self, rollouts: SampledTokens, rewards: Tensor) -> tuple[dict[str, float], Mapping[str, Tensor]]:
        """The log of one guided update in two microbatches, with `prepare`'s gaps, and the online weights."""
        advantages = group_advantages(rewards).flatten()
        data = Rollouts(*self.text, rollouts.tokens, rollouts.log_probs, advantages, rewards.flatten())
        update = PolicyUpdate(
            self.policy(),
            self.policy(),
            self.policy("reference"),
            data,
            policy_params(minibatch_size=4, microbatch_size=2, checkpointing=True),
            CONFIG,
            seed=0,
            round_id=1,
            steps_before=0,
        )
        return update.prepare() | update.step(0), update.state()["online"]

    def update_decoder(self, tokens: Tensor, rewards: Tensor) -> tuple[dict[str, float], Mapping[str, Tensor]]:
        """The log of one decoder step with PatchGAN, LPIPS and the CLIP reward, and the decoder's weights."""
        tokenizer = self.tokenizer()
        side = tokenizer.config.image_size
        reals = torch.rand(2, 3, side, side, generator=generator(0, "reals"))
        weights = rank_weights(rewards, 1.0)
        params = decoder_params(rollouts_per_step=2, reals_per_step=2, reward_ratio=0.1)
        update = DecoderUpdate(
            Nets(
                tokenizer,
                self.tokenizer(),
                PatchGAN(8, 2).initialise(generator(0, "discriminator")).to(self.device),
                self.reward,
                LpipsVGG(self.vgg16, self.device),
            ),
            RankedImages(tokens.cpu().view(len(PROMPTS), GROUP, -1), weights, PROMPTS, reals),
            params,
            seed=0,
            round_id=1,
            steps_before=0,
        )
        return update.step(0), update.state()["online"]
