"""Janus's image tokenizer: LlamaGen's VQ-16 under other names, so it is LlamaGen's `Tokenizer`.

transformers' `JanusVQVAE.decode` looks codes up at unit length, as Janus was trained; its `encode` forgets to
normalise features and codes before it compares them. Janus's own code normalises both, and so does `Tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rank_e.backbones.llamagen.tokenizer import TokenizerConfig
from rank_e.errors import RankEError

GROUPS = 32  # of every GroupNorm; transformers fixes it
RENAMED = (
    ("encoder.conv_blocks.", "encoder.down."),
    ("decoder.conv_blocks.", "decoder.up."),
    (".res.", ".block."),
    (".mid.0.", ".mid.block_1."),
    (".mid.1.", ".mid.attn_1."),
    (".mid.2.", ".mid.block_2."),
)
"""Parts of names: LlamaGen's, which `Tokenizer` has, and transformers'."""


def ours(name: str) -> str:
    """The name in `Tokenizer` of a weight of transformers' `JanusVQVAE`."""
    for mine, theirs in RENAMED:
        name = name.replace(theirs, mine)
    return name


def theirs(name: str) -> str:
    """The inverse of `ours`."""
    for mine, other in RENAMED:
        name = name.replace(mine, other)
    return name


def tokenizer_config(vq: Mapping[str, Any]) -> TokenizerConfig:
    """The sizes of a `JanusVQVAEConfig` given as a dict; RankEError for a variant that no Janus has."""
    channels = {key: vq[key] for key in ("in_channels", "out_channels")}
    if vq["double_latent"] or set(channels.values()) != {3}:
        raise RankEError(
            f"Janus config: vq_config.double_latent {vq['double_latent']}, {channels}; "
            "only RGB models without a double latent are supported: use a Janus-Pro checkpoint"
        )
    multipliers = tuple(vq["channel_multiplier"])
    return TokenizerConfig(
        image_size=vq["num_patches"] * 2 ** (len(multipliers) - 1),
        channels=vq["base_channels"],
        channel_multipliers=multipliers,
        residual_blocks=vq["num_res_blocks"],
        z_channels=vq["latent_channels"],
        codebook_size=vq["num_embeddings"],
        codebook_dim=vq["embed_dim"],
        norm_groups=GROUPS,
    )
