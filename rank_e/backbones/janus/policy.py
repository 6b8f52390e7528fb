"""Janus-Pro's policy (arXiv 2501.17811): a Llama that reads a prompt and writes image tokens.

The layers are transformers' own; this module decides what each of them sees. A prompt's ids are

    BOS, the chat template with the prompt, BOI (`<begin_of_image>`)

and the unconditional branch keeps BOS and BOI and has the pad token everywhere between, attended like any other row.
Left padding is never attended and BOS is always at position 0, as in training.

Keys and values of a text are computed once for each prompt and gathered for its rollouts layer by layer. What is
trained is the language model's layers and norm, and the generation embedding, aligner and head. The text embedding
is frozen and shared between policies: image tokens never read it, and the understanding half lives on it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rank_e.backbones.decoding.opening import PolicyCache
from rank_e.backbones.decoding.slots import LayerCache, TextSlots
from rank_e.backbones.layers import layer_kernel, run_layer
from rank_e.backbones.llamagen.policy import attention_mask
from rank_e.errors import RankEError
from rank_e.io.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()  # transformers imports torchvision

from transformers import JanusConfig, LlamaConfig  # noqa: E402
from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead  # noqa: E402
from transformers.models.llama.modeling_llama import (  # noqa: E402
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)


@dataclass(frozen=True)
class SpecialTokens:
    """Text ids: begin of sentence, begin of image, padding."""

    bos: int
    boi: int
    pad: int


@dataclass(frozen=True)
class JanusPrefix:
    """P texts behind all layers, read by N rows.

    keys (rotated) and values: for each layer [P, kv_heads, T, head_dim]; mask bool [P, T]; last [P, dim]: the BOI row
    behind all layers; index int64 [N]: the text of each row.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    last: Tensor
    index: Tensor

    @property
    def hidden(self) -> Tensor:
        return self.last.index_select(0, self.index)

    def rows(self, index: Tensor) -> JanusPrefix:
        return replace(self, index=self.index.index_select(0, index))


class _Record:
    """Stands where a layer expects its cache: remembers the keys and values that it computed."""

    def update(self, keys: Tensor, values: Tensor, _: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


class _After:
    """Stands where a layer expects its cache: its keys and values come after a text's."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, _: int) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


class LanguageModel(nn.Module):
    """The layers and the last norm of a Llama, under transformers' names."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class JanusPolicy(nn.Module):
    """pi_theta(tokens | text ids), a `rank_e.backbones.protocol.PolicyModel`.

    Parameter names are those of transformers' Janus without "model.". `text_embedding` [text vocabulary, dim] is
    frozen and belongs to no state dict. Build it on the meta device and load with assign=True to skip drawing weights.
    """

    def __init__(self, config: JanusConfig, special: SpecialTokens, text_embedding: Tensor) -> None:
        super().__init__()
        text = cast(LlamaConfig, config.text_config)
        rope = cast(dict[str, Any], text.rope_parameters)
        if text.model_type != "llama" or rope["rope_type"] != "default":
            raise RankEError(
                f"Janus config: text_config.model_type {text.model_type!r} with rope {rope['rope_type']!r}; "
                "only a Llama with the default rope is supported: use a Janus-Pro checkpoint"
            )
        text = deepcopy(text)
        text._attn_implementation = "sdpa"
        self.config, self.special = config, special
        self.limit = text.max_position_embeddings
        self.register_buffer("text_embedding", text_embedding.detach(), persistent=False)
        self.text_embedding: Tensor
        self.language_model = LanguageModel(text)
        vq = cast(Any, config.vq_config)
        self.length, self.vocab_size = vq.num_patches**2, vq.num_embeddings
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner, self.generation_head = JanusVQVAEAlignerMLP(vq), JanusVQVAEHead(vq)
        # Not a buffer: `.to(dtype)` must not round the frequencies, and a meta-device build must have them.
        with torch.device("cpu"):
            self._frequencies = LlamaRotaryEmbedding(text).inv_freq.detach().float().clone()

    @property
    def device(self) -> torch.device:
        return self.generation_embeddings.weight.device

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one row's image."""
        weights = [layer.self_attn.k_proj.weight for layer in self.layers]
        return sum(2 * self.length * weight.shape[0] * weight.element_size() for weight in weights)

    @property
    def layers(self) -> list[LlamaDecoderLayer]:
        return cast(list[LlamaDecoderLayer], list(self.language_model.layers))

    def prefix(
        self, text: Tensor, mask: Tensor, unconditional: Tensor | None = None, checkpointing: bool = False
    ) -> JanusPrefix:
        """Run text ids int64 [P, T] under mask bool [P, T], left-padded: BOS, the prompt, BOI.

        Rows where `unconditional` (bool [P]) is set read BOS, pads, BOI under the same mask; their ids are not read.
        RankEError for ids of another form and for texts that leave no room for the image.
        """
        ids = self._checked(text, mask.bool(), unconditional)
        mask = mask.bool()
        x = nn.functional.embedding(ids, self.text_embedding)
        turn = self._rotation((mask.cumsum(-1) - 1).clamp_min(0), x.dtype)
        allowed = attention_mask(mask)[:, None]
        keys, values = [], []
        for layer in self.layers:
            x, key, value = run_layer(_text_layer, checkpointing, layer, x, allowed, turn)
            keys.append(key)
            values.append(value)
        return JanusPrefix(tuple(keys), tuple(values), mask, x[:, -1], torch.arange(len(ids), device=ids.device))

    def _checked(self, text: Tensor, mask: Tensor, unconditional: Tensor | None) -> Tensor:
        """The ids that each row reads, [P, T]."""
        if text.dtype != torch.int64 or text.ndim != 2 or text.shape != mask.shape:
            raise RankEError(
                f"janus text: {text.dtype} {tuple(text.shape)}, mask {tuple(mask.shape)}; give int64 ids [P, T] and "
                "their mask [P, T]"
            )
        if text.shape[1] + self.length > self.limit:
            raise RankEError(
                f"janus text: {text.shape[1]} ids and {self.length} image tokens exceed the model's {self.limit} "
                "positions; shorten the longest prompt"
            )
        if not bool(mask[:, -2:].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise RankEError("janus text: a mask is not left-padded or has fewer than two valid rows; pad on the left")
        special = self.special
        blank = torch.full_like(text, special.pad).masked_fill(mask & (mask.cumsum(-1) == 1), special.bos)
        blank[:, -1] = special.boi
        # What generate() makes of the prompt for its unconditional branch; it must be what the mask alone says.
        kept = torch.where((text == special.bos) | (text == special.boi), text, special.pad)
        wrong = ((kept != blank) & mask).any(-1)
        if unconditional is not None:
            wrong = wrong & ~unconditional
        if bool(wrong.any()):
            raise RankEError(
                f"janus text: row {int(wrong.nonzero()[0])} is not BOS ({special.bos}), a prompt without BOS and BOI, "
                f"BOI ({special.boi}); encode prompts with the backbone's encode_text"
            )
        return text if unconditional is None else torch.where(unconditional[:, None], blank, text)

    def hidden(self, prefix: JanusPrefix, tokens: Tensor, checkpointing: bool = False, fast: bool = False) -> Tensor:
        """Teacher forcing after N prefix rows: tokens int64 [N, L] -> rows [N, L, dim], whose `logits` predict them."""
        x = self._embed(tokens[:, :-1])
        image_layer = layer_kernel(_image_layer, x, fast)
        steps, mask = torch.arange(x.shape[1], device=x.device), prefix.mask.index_select(0, prefix.index)
        turn = self._rotation(mask.sum(-1, keepdim=True) + steps, x.dtype)
        image = (steps[:, None] >= steps).expand(len(x), 1, -1, -1)
        allowed = torch.cat([mask[:, None, None].expand(-1, -1, len(steps), -1), image], dim=-1)
        for layer, key, value in zip(self.layers, prefix.keys, prefix.values, strict=True):
            x = run_layer(image_layer, checkpointing, layer, x, allowed, turn, key, value, prefix.index)
        return torch.cat([prefix.hidden[:, None], x], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows [..., dim] -> float32 logits [..., V]."""
        return self.generation_head(self.language_model.norm(hidden)).float()

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights that `logits` reads."""
        return [*self.language_model.norm.parameters(), *self.generation_head.parameters()]

    def cache(self, prefix: JanusPrefix, fast: bool = False) -> PolicyCache:
        """A key-value cache filled with the texts of N rows; `fast` as `PolicyCache.open` says. Under no_grad."""
        return PolicyCache.open(_slots(prefix), self._row_rotation(prefix), fast)

    def refill(self, cache: PolicyCache, prefix: JanusPrefix) -> bool:
        """Fill a cache for another batch; False, and nothing done, where the batch does not fit."""
        return cache.refill(_slots(prefix), self._row_rotation(prefix))

    def _row_rotation(self, prefix: JanusPrefix) -> Tensor:
        """Cosine and sine [L, 2, N, 1, head_dim] of the image tokens' positions, which follow each row's text."""
        texts = prefix.mask.sum(-1).index_select(0, prefix.index)
        fed = torch.arange(self.length, device=texts.device)
        return torch.stack(self._rotation(texts + fed[:, None], prefix.last.dtype), dim=1).unsqueeze(3)

    def step(self, tokens: Tensor, cache: PolicyCache) -> Tensor:
        """Feed tokens int64 [N] at the cache's position, predict the next: logits float32 [N, V]. Under no_grad."""
        x, step = self._embed(tokens), cache.kernel(_row_layer)
        rotation = cache.position.read(cache.rotation)
        for layer, slots in zip(self.layers, cache.slots.layers, strict=True):
            x = step(layer, x, rotation, slots)
        cache.slots.advance()
        return self.logits(x)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Image tokens int64 [N, M] -> rows [N, M, dim]."""
        return self.generation_aligner(self.generation_embeddings(tokens))

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [..., head_dim] of int64 positions [...], computed in float32."""
        angles = positions[..., None].float() * self._frequencies.to(positions.device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _text_layer(
    layer: LlamaDecoderLayer, x: Tensor, allowed: Tensor, turn: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Text rows behind one layer, and the keys and values that image rows will see."""
    record = _Record()
    x = layer(x, attention_mask=allowed, position_embeddings=turn, past_key_values=cast(Any, record))
    return x, record.keys, record.values


def _image_layer(
    layer: LlamaDecoderLayer,
    x: Tensor,
    allowed: Tensor,
    turn: tuple[Tensor, Tensor],
    key: Tensor,
    value: Tensor,
    index: Tensor,
) -> Tensor:
    """Image rows behind one layer; the text's keys and values are gathered here, so that checkpointing drops them."""
    after = _After(key.index_select(0, index), value.index_select(0, index))
    return layer(x, attention_mask=allowed, position_embeddings=turn, past_key_values=cast(Any, after))


def _row_layer(layer: LlamaDecoderLayer, x: Tensor, rotation: Tensor, slots: LayerCache) -> Tensor:
    """One image row of each sample, x [N, dim], behind one layer."""
    attention, h = layer.self_attn, layer.input_layernorm(x)
    query, key, value = (
        project(h).unflatten(-1, (-1, attention.head_dim))
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    # Turned and scaled before it is rounded once.
    query = (_turn(query.float(), rotation) * attention.scaling).type_as(x)
    key = _turn(key, rotation).type_as(x)
    x = x + attention.o_proj(slots.attend(query, key, value).flatten(1))
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Llama's rotary positions: x [N, heads, head_dim] by cosine and sine [2, N, 1, head_dim], halves as pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


def _slots(prefix: JanusPrefix) -> TextSlots:
    """The texts' keys and values as sampling reads them; padding is hidden."""
    keys, values = (tuple(part.transpose(1, 2) for part in parts) for parts in (prefix.keys, prefix.values))
    bias = torch.zeros_like(prefix.mask, dtype=torch.float32).masked_fill(~prefix.mask, float("-inf"))
    return TextSlots(keys, values, bias, prefix.index)
