"""The one protocol behind which every generator lives, and how one is loaded by its name."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rank_e.backbones import backbone_path
from rank_e.models.protocol import PolicyModel, TokenizerModel


class Backbone(Protocol):
    """A text encoder, a policy and a tokenizer, from one folder of base weights.

    Everything is loaded on first use, so that a stage pays only for what it needs, and lies on the backbone's device:
    text encoder and policy in its dtype, the tokenizer always in float32.
    """

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels."""
        ...

    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> (what the policy reads: features [N, T, C] or ids [N, T], left-padded; mask bool [N, T])."""
        ...

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        """Indices of the prompts that `encode_text` truncates."""
        ...

    def policy_weights(self) -> dict[str, Tensor]:
        """The base policy's trained weights, float32, on the CPU."""
        ...

    def policy(self, weights: Mapping[str, Tensor]) -> PolicyModel:
        """A policy of this backbone's size that holds a copy of `weights`, in eval mode."""
        ...

    def decoder_weights(self) -> dict[str, Tensor]:
        """The base decoder's and post_quant_conv's weights, float32, on the CPU."""
        ...

    def tokenizer(self, decoder: Mapping[str, Tensor]) -> TokenizerModel:
        """The base tokenizer with a copy of `decoder` for its decoder, in eval mode."""
        ...


def load_backbone(name: str, base: str | Path, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The backbone called `name` with the base weights in folder `base`; RankEError names an unknown one."""
    module, _, attribute = backbone_path(name).partition(":")
    maker: Any = getattr(import_module(module), attribute)
    backbone: Backbone = maker(Path(base), device, dtype)
    return backbone
