"""The autoregressive policy: LlamaGen's text-to-image transformer (arXiv 2406.06525), any size by a config.

One sequence is a text prefix of T rows followed by L image tokens in raster order. Image rows carry 2D
rotary positions. Text rows carry none, and in LlamaGen that means a rotation table of *zeros*: queries and
keys of the text vanish. Softmax attention over the prefix is therefore exactly

* a causal mean of the valid values for a text row (no scores to compute), and
* a single slot for an image row: key 0, value = mean of the n valid text values, score log(n).

The prefix of any length thus costs one slot in the key-value cache, is computed once for each prompt instead
of once for each rollout, and its last row (whose attention output is that same mean) predicts the first image
token. Training, scoring and sampling all read the prefix through `attention_mask`: causal, invalid text
columns off, diagonal on.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rank_e.backbones.decoding.opening import PolicyCache
from rank_e.backbones.decoding.slots import TextSlots
from rank_e.backbones.layers import layer_kernel, run_layer
from rank_e.backbones.llamagen.transformer import Block, RMSNorm
from rank_e.errors import RankEError


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes of a policy: `block_size` image tokens (a square), `cls_token_num` text rows of `caption_dim`."""

    dim: int
    n_layer: int
    n_head: int
    vocab_size: int
    block_size: int
    cls_token_num: int
    caption_dim: int
    multiple_of: int = 256
    norm_eps: float = 1e-5
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        if self.dim % (4 * self.n_head):
            raise RankEError(f"PolicyConfig: dim {self.dim} must be a multiple of 4 * n_head = {4 * self.n_head}")
        if isqrt(self.block_size) ** 2 != self.block_size:
            raise RankEError(f"PolicyConfig: block_size {self.block_size} must be a square (2D rotary positions)")

    @property
    def hidden_dim(self) -> int:
        """Width of the SwiGLU layer: 2/3 of 4 * dim, rounded up to `multiple_of` (LlamaGen's rule)."""
        return -(-int(8 * self.dim / 3) // self.multiple_of) * self.multiple_of


# LlamaGen's named sizes, for PolicyConfig(**LLAMAGEN["XL"], vocab_size=..., block_size=..., ...).
LLAMAGEN: dict[str, dict[str, int]] = {
    "B": {"n_layer": 12, "n_head": 12, "dim": 768},
    "L": {"n_layer": 24, "n_head": 16, "dim": 1024},
    "XL": {"n_layer": 36, "n_head": 20, "dim": 1280},
    "XXL": {"n_layer": 48, "n_head": 24, "dim": 1536},
    "3B": {"n_layer": 24, "n_head": 32, "dim": 3200},
}


def attention_mask(text_mask: Tensor) -> Tensor:
    """Who sees whom in a prefix: bool [P, T] -> bool [P, T, T]; causal, invalid columns off, diagonal on."""
    ones = torch.ones(text_mask.shape[1], text_mask.shape[1], dtype=torch.bool, device=text_mask.device)
    return (ones.tril() & text_mask[:, None, :]) | torch.eye(len(ones), dtype=torch.bool, device=ones.device)


def rotary_table(config: PolicyConfig) -> Tensor:
    """Unit complex numbers [block_size, head_dim / 2]; the first half turns by row, the second by column."""
    side, quarter = isqrt(config.block_size), config.dim // config.n_head // 4
    frequencies = config.rope_base ** -(torch.arange(quarter, device="cpu", dtype=torch.float32) / quarter)
    angles = torch.arange(side, device="cpu", dtype=torch.float32)[:, None] * frequencies
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    grid = torch.cat([rows, columns], dim=-1).reshape(config.block_size, 2 * quarter)
    return torch.polar(torch.ones_like(grid), grid)


@dataclass(frozen=True)
class Prefix:
    """What image rows need of P prompts of n valid rows each.

    values: for each layer the mean text value [P, dim]; log_count [P]: log n; hidden [P, dim]: the last text
    row behind all layers, which predicts the first image token.
    """

    values: tuple[Tensor, ...]
    log_count: Tensor
    hidden: Tensor

    def rows(self, index: Tensor) -> Prefix:
        """The prefixes of rows that belong to prompts `index` (int64 [N])."""
        values = tuple(value.index_select(0, index) for value in self.values)
        return Prefix(values, self.log_count.index_select(0, index), self.hidden.index_select(0, index))


class CaptionProjection(nn.Module):
    """Two-layer map of text features to the policy's width; no bias, so that zero rows stay zero."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(text), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Caption projection and the learned text [cls_token_num, caption_dim] that stands for "no prompt"."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config)
        self.uncond_embedding = nn.Parameter(torch.zeros(config.cls_token_num, config.caption_dim))


class Policy(nn.Module):
    """pi_theta(tokens | text). Parameter names are LlamaGen's, so that its checkpoints load as they are."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = CaptionEmbedder(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        sizes = (config.dim, config.n_head, config.hidden_dim, config.norm_eps)
        self.layers = nn.ModuleList(Block(*sizes) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        # Not a buffer: `.to(dtype)` must not round the angles, and a meta-device build must have them.
        self._rotation = rotary_table(config)

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    @property
    def length(self) -> int:
        """Image tokens of one sample."""
        return self.config.block_size

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one row's image."""
        return 2 * self.config.n_layer * self.length * self.config.dim * self.output.weight.element_size()

    @property
    def blocks(self) -> list[Block]:
        return cast(list[Block], list(self.layers))

    def initialise(self, generator: torch.Generator) -> Policy:
        """Draw fresh weights (CPU only): normal, std 0.02; norms 1; output 0. Returns self.

        The caption projection is drawn wider: at 0.02 its activation works in its linear part around zero, captions
        differ little behind it, and a policy learns what they say several times more slowly.
        """
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 1:
                    weight.fill_(1.0)
                elif name == "output.weight":
                    weight.zero_()
                elif name.startswith("cls_embedding."):  # the projection and the learned "no prompt"
                    weight.normal_(0.0, self.config.caption_dim**-0.5, generator=generator)
                else:
                    weight.normal_(0.0, 0.02, generator=generator)
        return self

    def prefix(
        self, text: Tensor, mask: Tensor, unconditional: Tensor | None = None, checkpointing: bool = False
    ) -> Prefix:
        """Run the text rows: text [P, T, caption_dim] and mask bool [P, T], left-padded, T <= cls_token_num.

        Rows where `unconditional` (bool [P]) is set read the learned unconditional text under the same mask.
        Raises RankEError for right-padded or empty text: the policy was trained left-padded.
        """
        known = len(self.cls_embedding.uncond_embedding)
        if text.shape[:2] != mask.shape or text.shape[1] > known:
            raise RankEError(
                f"policy text: features {tuple(text.shape)}, mask {tuple(mask.shape)}; "
                f"give [P, T, C] and [P, T] with T <= {known}"
            )
        mask = mask.bool()
        if not bool(mask[:, -1].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise RankEError(
                "policy text: a mask is not left-padded or has no valid row; move the padding to the front"
            )
        text = text.type_as(self.cls_embedding.uncond_embedding)
        if unconditional is not None:
            learned = self.cls_embedding.uncond_embedding[known - text.shape[1] :]
            text = torch.where(unconditional[:, None, None], learned, text)
        x = self.cls_embedding.cap_proj(text)
        allowed = attention_mask(mask).type_as(x)
        weights = allowed / allowed.sum(-1, keepdim=True)
        values = []
        for block in self.blocks:
            x, value = run_layer(block.text, checkpointing, x, weights)
            values.append(value)
        return Prefix(tuple(values), mask.sum(-1).float().log(), x[:, -1])

    def hidden(self, prefix: Prefix, tokens: Tensor, checkpointing: bool = False, fast: bool = False) -> Tensor:
        """Teacher forcing after N prefix rows: tokens int64 [N, L] -> rows [N, L, dim], whose `logits` predict them."""
        steps = tokens.shape[1] - 1
        # Spread over the heads of queries and keys: a wide contiguous factor multiplies several times faster.
        rotation = self._rotation[:steps, None].to(tokens.device).repeat(1, 2 * self.config.n_head, 1)
        x = self.tok_embeddings(tokens[:, :-1])
        image = layer_kernel(Block.image, x, fast)
        rotation = rotation if image is Block.image else torch.view_as_real(rotation)
        # Image row i sees the text slot (column 0) and image columns 1 ... i + 1.
        bias = torch.full((steps, steps + 1), float("-inf"), device=x.device, dtype=x.dtype).triu(2)
        bias = bias.expand(len(x), 1, -1, -1).clone()
        bias[..., 0] = prefix.log_count[:, None, None]
        for block, value in zip(self.blocks, prefix.values, strict=True):
            x = run_layer(image, checkpointing, block, x, value, rotation, bias)
        return torch.cat([prefix.hidden[:, None], x], dim=1)

    def forward(
        self,
        text: Tensor,
        mask: Tensor,
        tokens: Tensor,
        unconditional: Tensor | None = None,
        checkpointing: bool = False,
    ) -> Tensor:
        """Teacher forcing: logits float32 [N, L, V]; logits[:, i] predicts tokens[:, i].

        text [N, T, caption_dim] left-padded, mask bool [N, T], tokens int64 [N, L] with 2 <= L <= block_size,
        unconditional bool [N] or None. `checkpointing` recomputes each block in the backward pass.
        """
        return self.logits(self.hidden(self.prefix(text, mask, unconditional, checkpointing), tokens, checkpointing))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows [..., dim] -> float32 logits [..., V]."""
        return self.output(self.norm(hidden)).float()

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `logits` reads."""
        return [*self.norm.parameters(), *self.output.parameters()]

    def cache(self, prefix: Prefix, fast: bool = False) -> PolicyCache:
        """A key-value cache filled with the texts of N rows; `fast` as `PolicyCache.open` says. Under no_grad."""
        return PolicyCache.open(self._slots(prefix), self._row_rotation(), fast)

    def refill(self, cache: PolicyCache, prefix: Prefix) -> bool:
        """Fill a cache for another batch; False, and nothing done, where the batch does not fit."""
        return cache.refill(self._slots(prefix), self._row_rotation())

    def _slots(self, prefix: Prefix) -> TextSlots:
        """Each row's text as one slot with key 0."""
        values = tuple(value.unflatten(-1, (1, self.config.n_head, -1)) for value in prefix.values)
        index = torch.arange(len(prefix.hidden), device=self.device)
        return TextSlots(None, values, prefix.log_count[:, None], index)

    def _row_rotation(self) -> Tensor:
        """[L, 2 heads, head_dim / 2, 2]: cosine and sine, with the softmax scale on the queries' half."""
        heads = self.config.n_head
        rotation = torch.view_as_real(self._rotation)[:, None].to(self.device).repeat(1, 2 * heads, 1, 1)
        rotation[:, :heads] *= (self.config.dim // heads) ** -0.5
        return rotation

    def step(self, tokens: Tensor, cache: PolicyCache) -> Tensor:
        """Feed tokens int64 [N] at the cache's position, predict the next: logits float32 [N, V]. Under no_grad."""
        x, step = self.tok_embeddings(tokens), cache.kernel(Block.step)
        rotation = cache.position.read(cache.rotation)
        for block, layer in zip(self.blocks, cache.slots.layers, strict=True):
            x = step(block, x, rotation, layer)
        cache.slots.advance()
        return self.logits(x)
