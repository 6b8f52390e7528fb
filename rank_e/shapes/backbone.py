"""The embedded world as a backbone: real networks of the real architectures at toy size, from one folder."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.metrics.clip_score import Evaluator
from rank_e.models.policy import Policy, PolicyConfig
from rank_e.models.tokenizer import Tokenizer, TokenizerConfig
from rank_e.rewards.clip import ClipReward
from rank_e.shapes import clip, dataset
from rank_e.shapes.perceptual import Perceptual


class ShapesBackbone:
    """Loads from `folder`: base.json and {text,reward,evaluator,tokenizer,policy}.safetensors (float16)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = folder / "base.json"
        if not manifest.is_file():
            raise RankEError(
                f"backbone.base: {manifest} does not exist; train a base with `make base` or check it out again"
            )
        self.manifest = json.loads(manifest.read_text())

    def _tensors(self, name: str) -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise RankEError(f"backbone.base: {path} does not exist; check the folder out again or run `make base`")
        return {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}

    def _clip(self, name: str, size: clip.ClipSize) -> torch.nn.Module:
        model = clip.build(size)
        model.load_state_dict(self._tensors(name), strict=True)
        return model.eval().requires_grad_(False)

    @cached_property
    def text_encoder(self) -> clip.TextEncoder:
        return clip.TextEncoder(self._clip("text", clip.TEXT))

    @cached_property
    def reward_clip(self) -> torch.nn.Module:
        return self._clip("reward", clip.REWARD)

    @cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self._clip("evaluator", clip.EVALUATOR), clip.tokenize)

    @cached_property
    def perceptual(self) -> Perceptual:
        return Perceptual(self.reward_clip)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Features [N, T, C] and mask [N, T]; each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        features, mask = self.text_encoder(distinct)
        rows = torch.tensor([distinct.index(p) for p in prompts])
        return features[rows], mask[rows]

    def policy_weights(self) -> dict[str, Tensor]:
        return self._tensors("policy")

    def policy(self, weights: dict[str, Tensor]) -> Policy:
        policy = Policy(PolicyConfig(**self.manifest["policy"]))
        policy.load_state_dict(weights, strict=True)
        return policy.eval()

    def decoder_weights(self) -> dict[str, Tensor]:
        return self._base_tokenizer().decoder_state()

    def _base_tokenizer(self) -> Tokenizer:
        config = dict(self.manifest["tokenizer"])
        config["channel_multipliers"] = tuple(config["channel_multipliers"])
        tokenizer = Tokenizer(TokenizerConfig(**config))
        tokenizer.load_state_dict(self._tensors("tokenizer"), strict=True)
        return tokenizer.eval()

    def tokenizer(self, decoder: dict[str, Tensor]) -> Tokenizer:
        tokenizer = self._base_tokenizer()
        tokenizer.load_decoder_state(decoder)
        return tokenizer

    def reward(self, name: str) -> Callable[[Tensor, list[str]], Tensor]:
        if name != "clip":
            raise RankEError(f"ranking.reward: the shapes backbone has no reward {name!r}; known: clip")
        return ClipReward(self.reward_clip, clip.tokenize)

    def prompts(self, split: str, count: int, seed: int) -> list[tuple[str, str]]:
        return [(prompt.text, prompt.category) for prompt in dataset.prompts(split, count, seed)]

    def real_pictures(self, prompts: list[str], seed: int) -> Tensor:
        return dataset.pictures([dataset.scene_for(p, seed) for p in self._parsed(prompts)])

    def check(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        return dataset.check_pictures(pictures, self._parsed(prompts))

    def _parsed(self, prompts: list[str]) -> list[dataset.Prompt]:
        return [dataset.Prompt.from_text(index, text) for index, text in enumerate(prompts)]
