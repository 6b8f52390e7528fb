"""The one protocol behind which every backbone lives, and the registry that finds it by name."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rank_e.errors import RankEError
from rank_e.models.policy import Policy
from rank_e.models.tokenizer import Tokenizer


class Backbone(Protocol):
    """A text encoder, a policy, a tokenizer, and the data and judges they are post-trained with.

    Pictures are float32 [N, 3, H, W] in [0, 1]; tokens int64 [N, L]; text features [N, T, C] left-padded with zeros.
    Everything is loaded on first use, so that a stage pays only for what it needs.
    """

    evaluator: Any
    perceptual: Callable[[Tensor, Tensor], Tensor]

    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> (features [N, T, C], mask bool [N, T])."""
        ...

    def policy_weights(self) -> dict[str, Tensor]:
        """The base policy's weights, float32."""
        ...

    def policy(self, weights: dict[str, Tensor]) -> Policy:
        """A policy of this backbone's size that holds `weights`, in eval mode."""
        ...

    def decoder_weights(self) -> dict[str, Tensor]:
        """The base decoder's and post_quant_conv's weights, float32."""
        ...

    def tokenizer(self, decoder: dict[str, Tensor]) -> Tokenizer:
        """The base tokenizer with the decoder weights replaced, in eval mode."""
        ...

    def reward(self, name: str) -> Callable[[Tensor, list[str]], Tensor]:
        """The reward called `name`: pictures and prompts -> scores [N], differentiable in the pictures."""
        ...

    def prompts(self, split: str, count: int, seed: int) -> list[tuple[str, str]]:
        """`count` (prompt, category) pairs of the "train" or "held_out" split, a function of the seed."""
        ...

    def real_pictures(self, prompts: list[str], seed: int) -> Tensor:
        """One real picture for each prompt, a function of the seed and the prompt's place."""
        ...

    def check(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """Whether each picture shows what its prompt says: bool [N]."""
        ...


BACKBONES = {"shapes": "rank_e.shapes.backbone:ShapesBackbone"}


def load_backbone(name: str, base: str | Path) -> Backbone:
    """The backbone called `name` with the base weights in folder `base`; RankEError names an unknown one."""
    if name not in BACKBONES:
        raise RankEError(f"backbone.name: unknown backbone {name!r}; known: {', '.join(sorted(BACKBONES))}")
    module, _, attribute = BACKBONES[name].partition(":")
    backbone: Backbone = getattr(import_module(module), attribute)(Path(base))
    return backbone
