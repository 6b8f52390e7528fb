"""LlamaGen text-to-image (arXiv 2406.06525) as a backbone: a converted folder's policy, tokenizer and text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rank_e.backbones.llamagen import DECODER_PREFIXES, FORMAT, ROTARY
from rank_e.backbones.llamagen.policy import Policy, PolicyConfig
from rank_e.backbones.llamagen.text import T5TextEncoder
from rank_e.backbones.llamagen.tokenizer import USAGE, Tokenizer, TokenizerConfig
from rank_e.errors import RankEError
from rank_e.io.checkpoints import check_shapes, read_tensors, shapes_of, without
from rank_e.io.manifest import check_files, read_manifest


class LlamaGenBackbone:
    """The generator alone, loaded from a folder that `rank-e convert llamagen` wrote; each network on first use.

    Policy and text encoder compute in `dtype`, the tokenizer always in float32, as in LlamaGen's own sampling:
    nearest codes do not survive bfloat16. text_folder: the local flan-t5-xl, in place of the one in base.json.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, text_folder: str | Path | None = None
    ) -> None:
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        self.manifest: dict[str, Any] = read_manifest(self.folder, FORMAT)
        self.policy_config = PolicyConfig(**self.manifest["policy"])
        self.tokenizer_config = TokenizerConfig(**self.manifest["tokenizer"])
        self._text_folder = text_folder

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.tokenizer_config.image_size

    @property
    def length(self) -> int:
        """L, the image tokens of one image."""
        return self.policy_config.block_size

    @property
    def trained_policy_keys(self) -> tuple[str, ...]:
        """Names of what a round trains and stores of the policy: all its parameters."""
        with torch.device("meta"):
            return tuple(Policy(self.policy_config).state_dict())

    @cached_property
    def text_encoder(self) -> T5TextEncoder:
        """flan-t5's encoder; RankEError for no folder, another than was converted, or features of another width."""
        named = self._text_folder or self.manifest["text"]["folder"]
        if named is None:
            raise RankEError(
                f"backbone.text: {self.folder} names no text encoder; download google/flan-t5-xl and give its folder"
            )
        folder = Path(self._text_folder) if self._text_folder else self.folder / named
        if not self._text_folder:  # it lies outside the base folder: nothing else would notice another one there
            origin = self.manifest["origin"].items()
            files = {name.removeprefix("text/"): entry for name, entry in origin if name.startswith("text/")}
            check_files(folder, files, "backbone.text", FORMAT.fix)
        encoder = T5TextEncoder(folder, self.device, self.dtype, tokens=self.policy_config.cls_token_num)
        if encoder.width != self.policy_config.caption_dim:
            raise RankEError(
                f"backbone.text: {folder} gives features of width {encoder.width}, the policy reads "
                f"{self.policy_config.caption_dim}; give flan-t5-xl"
            )
        return encoder

    def encode_text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """P prompts -> (features [P, T, C] in `dtype`, mask bool [P, T]), left-padded; each prompt encoded once."""
        places = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        features, mask = self.text_encoder(list(places))
        rows = torch.tensor([places[prompt] for prompt in prompts], dtype=torch.int64, device=features.device)
        return features[rows], mask[rows]

    def truncated(self, prompts: Sequence[str]) -> list[int]:
        """Indices of the prompts that `encode_text` truncates."""
        return self.text_encoder.truncated(prompts)

    def policy_weights(self) -> dict[str, Tensor]:
        """The base policy's weights, float32, on the CPU."""
        return _float32(without(read_tensors(self.folder / "policy.safetensors"), ROTARY))

    def policy(self, weights: Mapping[str, Tensor]) -> Policy:
        """A policy that holds a copy of `weights` in `dtype` on the device, in eval mode; every name checked."""
        with torch.device("meta"):
            policy = Policy(self.policy_config)
        check_shapes(weights, shapes_of(policy.state_dict()), "backbone.policy: the weights")
        placed = {name: tensor.detach().to(self.device, self.dtype, copy=True) for name, tensor in weights.items()}
        policy.load_state_dict(placed, strict=True, assign=True)
        return policy.eval()

    def _tokenizer_weights(self) -> dict[str, Tensor]:
        return _float32(without(read_tensors(self.folder / "tokenizer.safetensors"), USAGE))

    def decoder_weights(self) -> dict[str, Tensor]:
        """The base decoder's and post_quant_conv's weights, float32, on the CPU."""
        weights = self._tokenizer_weights()
        return {name: tensor for name, tensor in weights.items() if name.startswith(DECODER_PREFIXES)}

    def tokenizer(self, decoder: Mapping[str, Tensor]) -> Tokenizer:
        """The base tokenizer with a copy of `decoder` for its decoder, float32, on the device, in eval mode."""
        with torch.device("meta"):
            tokenizer = Tokenizer(self.tokenizer_config)
        check_shapes(decoder, shapes_of(tokenizer.decoder_state()), "backbone.tokenizer: the decoder")
        weights = self._tokenizer_weights() | _float32(decoder)
        placed = {name: tensor.detach().to(self.device, copy=True) for name, tensor in weights.items()}
        tokenizer.load_state_dict(placed, strict=True, assign=True)
        return tokenizer.eval()


def _float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in tensors.items()}
