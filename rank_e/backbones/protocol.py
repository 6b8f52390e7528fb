"""What sampling, scoring and the two updates ask of a backbone's networks, whatever their architecture.

`llamagen.policy.Policy` and `janus.policy.JanusPolicy` are policies, `llamagen.tokenizer.Tokenizer` is the tokenizer of
both. All are torch modules; the protocols name what is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class PrefixRows(Protocol):
    """What the image rows of N samples need of their texts, computed once for each prompt."""

    @property
    def hidden(self) -> Tensor:
        """[N, dim]: the last text row behind all layers; `PolicyModel.logits` of it predicts the first image token."""
        ...

    def rows(self, index: Tensor) -> Self:
        """The prefixes that rows `index` (int64 [M], values below N) read; differentiable."""
        ...


@runtime_checkable
class PolicyModel(Protocol):
    """pi_theta(tokens | text): L image tokens of a vocabulary of V, in raster order, after a left-padded text.

    text is what the backbone's `encode_text` gives: features [P, T, C] or ids int64 [P, T]; zeros of the same type
    stand in unconditional rows. mask is bool [P, T]. A prefix and a cache belong to the policy that made them, so
    their types are the policy's own.
    """

    @property
    def device(self) -> torch.device:
        """Where the weights lie; text, mask and tokens must lie there too."""
        ...

    @property
    def length(self) -> int:
        """L, the image tokens of one sample."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the number of image tokens; logits have this width."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes that a key-value cache takes for the image of one row."""
        ...

    def prefix(
        self, text: Tensor, mask: Tensor, unconditional: Tensor | None = None, checkpointing: bool = False
    ) -> Any:
        """Run P texts: `PrefixRows`. Rows where `unconditional` (bool [P]) is set read no prompt under the same mask.

        RankEError for a mask that is not left-padded. `checkpointing` recomputes each layer in the backward pass.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows [..., dim] -> float32 logits [..., V], each row by itself."""
        ...

    def head_parameters(self) -> list[nn.Parameter]:
        """All the weights that `logits` reads: gradients reach no others through it."""
        ...

    def cache(self, prefix: Any, fast: bool = False) -> Any:
        """A key-value cache filled with N prefix rows, for a whole sampling. Under no_grad.

        Its `position` (`decoding.slots.HostPosition` on a CPU, `DevicePosition` on CUDA) is where the next step feeds
        its tokens: 0.

        fast: steps may be compiled, where that is of use.
        """
        ...

    def refill(self, cache: Any, prefix: Any) -> bool:
        """Fill a cache for another batch; False, and nothing done, where the batch does not fit."""
        ...

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Feed tokens int64 [N] at the cache's position and advance it, predict the next: logits float32 [N, V].

        Under no_grad. On CUDA nothing in it waits for the device, and every position runs the same kernels on the same
        memory.
        """
        ...

    def hidden(self, prefix: Any, tokens: Tensor, checkpointing: bool = False, fast: bool = False) -> Tensor:
        """Teacher forcing after N prefix rows: tokens int64 [N, L] -> hidden rows [N, L, dim] behind all layers.

        `logits` of row i predicts token i. Rows of the text are left out, but for the last one in front. fast: layers
        may run compiled, where that is of use.
        """
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, and nothing else."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What a round stores: the trained weights."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Copy a `state_dict()` in, strictly."""
        ...

    def eval(self) -> Any:
        """No dropout."""
        ...


@runtime_checkable
class TokenizerConfigModel(Protocol):
    """Sizes that images and tokens have: image_size = side in pixels, grid^2 = L tokens, codebook_size = V."""

    @property
    def image_size(self) -> int: ...

    @property
    def grid(self) -> int: ...

    @property
    def codebook_size(self) -> int: ...


@runtime_checkable
class TokenizerModel(Protocol):
    """A VQ autoencoder of images [N, 3, S, S] in [-1, 1]; RankE's second stage trains `decoder_parameters()`."""

    @property
    def config(self) -> TokenizerConfigModel: ...

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution, where VQGAN's adaptive weight measures gradients."""
        ...

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> (their codes [N, C, grid, grid], tokens int64 [N, L])."""
        ...

    def decode(self, quantized: Tensor) -> Tensor:
        """Codes [N, C, grid, grid] -> images, about [-1, 1], not clamped."""
        ...

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [N, L] -> images, about [-1, 1], not clamped."""
        ...

    def decoder_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of all that RankE's second stage trains."""
        ...

    def decoder_state(self) -> dict[str, Tensor]:
        """The same, detached: what a round stores."""
        ...

    def load_decoder_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy a `decoder_state()` in; RankEError when a name or a shape differs."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Backbone(Protocol):
    """A text encoder, a policy and a tokenizer, from one folder of base weights.

    Everything is loaded on first use, so that a stage pays only for what it needs, and lies on the backbone's device:
    text encoder and policy in its dtype, the tokenizer always in float32.
    """

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        ...

    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> (what the policy reads: features [N, T, C] or ids [N, T], left-padded; mask bool [N, T])."""
        ...

    def truncated(self, prompts: Sequence[str]) -> list[int]:
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
