"""The image tokenizer: LlamaGen's VQ model (arXiv 2406.06525), any size by a config.

encoder -> quant_conv -> nearest code -> post_quant_conv -> decoder, on images in [-1, 1]. Module names are
LlamaGen's, so that its checkpoints load as they are. RankE trains `decoder_parameters()` and nothing else
(arXiv 2605.21195).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rank_e.backbones.llamagen import DECODER_PREFIXES
from rank_e.backbones.llamagen.convolutions import (
    Downsample,
    Level,
    NormSwish,
    Upsample,
    initialise_convolutions,
    middle,
)
from rank_e.errors import RankEError

USAGE = "quantize.codebook_used"  # a training statistic, which LlamaGen's own strict loader wants


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a tokenizer; L levels (channel_multipliers) divide the side of an image by 2^(L - 1)."""

    image_size: int
    channels: int
    channel_multipliers: tuple[int, ...]
    residual_blocks: int
    z_channels: int
    codebook_size: int
    codebook_dim: int
    l2_norm: bool = True
    norm_groups: int = 32  # of every GroupNorm; the official models have 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        if any(self.channels * m % self.norm_groups for m in self.channel_multipliers):
            raise RankEError(
                f"TokenizerConfig: channels {self.channels} x {self.channel_multipliers} must be "
                f"multiples of {self.norm_groups} (norm_groups)"
            )
        if self.image_size % self.downsampling:
            raise RankEError(f"TokenizerConfig: image_size {self.image_size} must be a multiple of {self.downsampling}")

    @property
    def downsampling(self) -> int:
        return int(2 ** (len(self.channel_multipliers) - 1))

    @property
    def grid(self) -> int:
        """Side of the token grid; an image is grid^2 tokens in raster order."""
        return self.image_size // self.downsampling


class Encoder(nn.Module):
    """Images [N, 3, S, S] -> features [N, z_channels, grid, grid]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[i - 1] if i else config.channels,
                width,
                config.norm_groups,
                config.residual_blocks,
                attention=i == last,
                resample=Downsample(width) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = middle(widths[-1], config.norm_groups)
        self.norm_out = NormSwish(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(self.norm_out(x))


class Decoder(nn.Module):
    """Features [N, z_channels, grid, grid] -> images [N, 3, S, S]; level 0 is the lowest resolution."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in reversed(config.channel_multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], config.norm_groups)
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                config.norm_groups,
                config.residual_blocks + 1,
                attention=i == 0,
                resample=Upsample(width) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = NormSwish(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        return self.conv_out(self.norm_out(x))


class Codebook(nn.Module):
    """Holder of the code vectors [codebook_size, codebook_dim] under LlamaGen's name `quantize.embedding`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        self.register_load_state_dict_pre_hook(_drop_usage_history)


def _drop_usage_history(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """LlamaGen's checkpoints also carry `codebook_used`, a training statistic that nothing reads."""
    state.pop(prefix + "codebook_used", None)


class Tokenizer(nn.Module):
    """VQ autoencoder; images float32 [N, 3, S, S] in [-1, 1], tokens int64 [N, grid^2] in raster order."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def initialise(self, generator: torch.Generator) -> Tokenizer:
        """Draw fresh weights (CPU only): Kaiming-uniform convolutions, unit normal codes. Returns self."""
        initialise_convolutions(self, generator)
        with torch.no_grad():
            self.quantize.embedding.weight.normal_(generator=generator)
        return self

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution, where VQGAN's adaptive weight measures gradients."""
        return cast(nn.Parameter, self.decoder.conv_out.weight)

    def codes(self) -> Tensor:
        """Code vectors as they are looked up [V, C]: of unit length when the config says `l2_norm`."""
        codes = self.quantize.embedding.weight
        return F.normalize(codes, dim=-1) if self.config.l2_norm else codes

    def features(self, images: Tensor) -> Tensor:
        """Images -> features before quantisation [N, C, grid, grid], of unit length if `l2_norm`."""
        z = self.quant_conv(self.encoder(images))
        return F.normalize(z, dim=1) if self.config.l2_norm else z

    def nearest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, C, h, w] -> (nearest codes [N, C, h, w], their indices int64 [N, h * w])."""
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)
        codes = self.codes()
        distance = codes.square().sum(-1) - 2.0 * flat @ codes.T  # |z|^2 does not change the order
        indices = distance.argmin(-1).view(len(z), -1)
        return self.look_up(indices), indices

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, S, S] in [-1, 1] -> (their codes [N, C, grid, grid], tokens int64 [N, L])."""
        return self.nearest(self.features(images))

    def look_up(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [N, L] -> code vectors [N, C, grid, grid]."""
        side = isqrt(tokens.shape[1])
        return F.embedding(tokens, self.codes()).transpose(1, 2).unflatten(-1, (side, -1))

    def decode(self, quantized: Tensor) -> Tensor:
        """Quantised features [N, C, grid, grid] -> images [N, 3, S, S], about [-1, 1] (not clamped)."""
        return self.decoder(self.post_quant_conv(quantized))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [N, L] -> images [N, 3, S, S], about [-1, 1] (not clamped)."""
        return self.decode(self.look_up(tokens))

    def decoder_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of decoder and post_quant_conv: all that RankE's second stage trains."""
        return [(name, p) for name, p in self.named_parameters() if name.startswith(DECODER_PREFIXES)]

    def decoder_state(self) -> dict[str, Tensor]:
        """Detached views of `decoder_parameters()` by name, ready to be saved."""
        return {name: p.detach() for name, p in self.decoder_parameters()}

    def load_decoder_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy a `decoder_state()` in; raises RankEError when a name or a shape differs."""
        own = self.decoder_state()
        shapes = {name: weight.shape for name, weight in own.items()}
        given = {name: weight.shape for name, weight in state.items()}
        wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
        if wrong:
            raise RankEError(
                f"decoder state: {len(wrong)} names or shapes differ, first {wrong[0]}; use a decoder of this tokenizer"
            )
        for name, weight in own.items():
            weight.copy_(state[name])
