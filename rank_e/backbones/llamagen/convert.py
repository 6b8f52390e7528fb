"""LlamaGen's official text-to-image checkpoints as a base folder.

Sizes are read off the shapes. Neither the policy's nor the tokenizer's shapes depend on the image's size (rotary
positions are computed), so that size comes from the caller, from the file's name (`t2i_XL_stage1_256.pt`) or from
a stored rotary table, and all that speak must agree. Tensors keep their bits, the buffers that nothing here reads
included: `export_llamagen` gives back every key of the official files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isqrt
from os.path import abspath, relpath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rank_e.backbones.llamagen import FORMAT, ROTARY
from rank_e.backbones.llamagen.policy import LLAMAGEN, Policy, PolicyConfig, rotary_table
from rank_e.backbones.llamagen.tokenizer import USAGE, Tokenizer, TokenizerConfig
from rank_e.errors import RankEError
from rank_e.io.checkpoints import (
    CheckpointError,
    check_absent,
    check_finite,
    check_shapes,
    check_space,
    origin_of,
    read_tensors,
    save_tensors,
    shapes_of,
    without,
    write_folder,
)
from rank_e.io.files import sha256_of
from rank_e.io.foreign import check_floating
from rank_e.io.manifest import read_manifest, write_manifest

MULTIPLE = 256  # of the width of SwiGLU layers in every official size
LARGEST = 8192  # side in pixels: the table of rotary positions grows with its square


@dataclass(frozen=True)
class PolicyShape:
    """What a policy's tensors tell, all of its config but block_size: `name` is B, L, XL, ... or "custom"."""

    name: str
    dim: int
    n_layer: int
    n_head: int
    vocab_size: int
    cls_token_num: int
    caption_dim: int
    multiple_of: int

    def config(self, block_size: int) -> PolicyConfig:
        """The policy's config for `block_size` image tokens."""
        values = asdict(self)
        values.pop("name")
        return PolicyConfig(block_size=block_size, **values)


def policy_shape(tensors: Mapping[str, Tensor], where: str | Path, heads: int | None = None) -> PolicyShape:
    """The shape of a t2i policy from its tensors (meta ones will do), the number of heads from the size's name.

    A size that LlamaGen does not name needs `heads`, unless a rotary table tells. CheckpointError when `where` is
    something else, or the number of heads is told in two ways.
    """
    if "cls_embedding.embedding_table.weight" in tensors:
        raise CheckpointError(f"{where} is a class-conditional (c2i) policy; give a text-to-image (t2i) one")
    names = ("tok_embeddings.weight", "cls_embedding.uncond_embedding", "layers.0.feed_forward.w1.weight")
    if absent := _absent(tensors, dict.fromkeys(names, 2)):
        raise CheckpointError(f"{where} is not a LlamaGen policy: no {', '.join(absent)}; give such as t2i_XL_*.pt")
    (vocab_size, dim), (rows, caption_dim), (hidden, _) = (tensors[name].shape for name in names)
    n_layer = _count(tensors, r"layers\.(\d+)\.")
    named = [name for name, size in LLAMAGEN.items() if (size["dim"], size["n_layer"]) == (dim, n_layer)]
    known = {LLAMAGEN[name]["n_head"] for name in named}
    if ROTARY in tensors:
        if _absent(tensors, {ROTARY: 3}):
            raise CheckpointError(f"{where}: {ROTARY} is not LlamaGen's 2D rotary table; give an official checkpoint")
        known.add(dim // (2 * tensors[ROTARY].shape[1]))
    if heads is not None:
        if heads < 1 or dim % (4 * heads):
            raise CheckpointError(f"{where}: {heads} heads of width {dim}; give a number whose fourfold divides {dim}")
        known.add(heads)
    if not known:
        sizes = ", ".join(f"{name} ({s['n_layer']} x {s['dim']})" for name, s in LLAMAGEN.items())
        raise CheckpointError(
            f"{where} has {n_layer} layers of width {dim}, none of {sizes}; give the number of heads (`--heads`)"
        )
    if len(known) > 1:
        raise CheckpointError(f"{where}: number of heads {sorted(known)} disagree for {n_layer} layers of width {dim}")
    ruled = -(-int(8 * dim / 3) // MULTIPLE) * MULTIPLE
    multiple_of = MULTIPLE if hidden == ruled else int(hidden)
    name = named[0] if named else "custom"
    return PolicyShape(name, dim, n_layer, known.pop(), vocab_size, rows, caption_dim, multiple_of)


def tokenizer_config(tensors: Mapping[str, Tensor], where: str | Path, image_size: int) -> TokenizerConfig:
    """The config of a VQ model from its tensors; VQ-16 and VQ-8 are 5 and 4 levels. CheckpointError as above."""
    names = {
        "encoder.conv_in.weight": 4,
        "encoder.conv_out.weight": 4,
        "quantize.embedding.weight": 2,
        "encoder.conv_blocks.0.res.0.conv1.weight": 4,
    }
    if absent := _absent(tensors, names):
        raise CheckpointError(
            f"{where} is not a LlamaGen tokenizer: no {', '.join(absent)}; give such as vq_ds16_t2i.pt"
        )
    channels, z_channels = (tensors[f"encoder.conv_{end}.weight"].shape[0] for end in ("in", "out"))
    codebook_size, codebook_dim = tensors["quantize.embedding.weight"].shape
    levels = [
        tensors.get(f"encoder.conv_blocks.{i}.res.0.conv1.weight")
        for i in range(_count(tensors, r"encoder\.conv_blocks\.(\d+)\."))
    ]
    # What is missing or has no width is named later.
    widths = [channels if level is None or not level.ndim else level.shape[0] for level in levels]
    blocks = _count(tensors, r"encoder\.conv_blocks\.0\.res\.(\d+)\.")
    multipliers = tuple(width // channels for width in widths)
    try:
        return TokenizerConfig(image_size, channels, multipliers, blocks, z_channels, codebook_size, codebook_dim)
    except RankEError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _absent(tensors: Mapping[str, Tensor], dimensions: Mapping[str, int]) -> list[str]:
    """The names that have no tensor, or an empty one or one of another number of dimensions."""
    return [
        name
        for name, count in dimensions.items()
        if name not in tensors or tensors[name].ndim != count or not tensors[name].numel()
    ]


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers stand at the group of `pattern` among the names."""
    found = (re.match(pattern, name) for name in tensors)
    return len({match[1] for match in found if match})


def image_side(path: str | Path, tensors: Mapping[str, Tensor], downsampling: int, given: int | None) -> int:
    """The side in pixels that a policy was trained for; CheckpointError when nothing tells, or two tell otherwise."""
    said = {} if given is None else {"image_size given": given}
    named = re.search(r"(?<!\d)(256|384|512)(?!\d)", Path(path).stem)
    if named:
        said["the file's name"] = int(named[1])
    if ROTARY in tensors:
        places = tensors[ROTARY].shape[0] - tensors["cls_embedding.uncond_embedding"].shape[0]
        said[f"{ROTARY} x {downsampling} (tokenizer)"] = isqrt(max(places, 0)) * downsampling
    if given is not None and not 1 <= given <= LARGEST:
        raise CheckpointError(
            f"{path}: image_size {given} is not a side in pixels from 1 to {LARGEST}; give 256 or 512"
        )
    if not said:
        raise CheckpointError(
            f"{path}: its shapes do not tell the image's size; give image_size (stage 1: 256, 2: 512)"
        )
    if len(set(said.values())) > 1:
        text = ", ".join(f"{value} by {who}" for who, value in said.items())
        raise CheckpointError(
            f"{path}: wrong image size for the checkpoint: {text}; give the size that it was trained for"
        )
    return next(iter(said.values()))


def check_policy(tensors: Mapping[str, Tensor], config: PolicyConfig, where: str | Path) -> None:
    """Strict names and shapes of a policy; a rotary table, if there, must be the one that the model computes."""
    with torch.device("meta"):
        policy = Policy(config)
    check_shapes(without(tensors, ROTARY), shapes_of(policy.state_dict()), where)
    check_floating(tensors, where)
    if ROTARY in tensors and not tensors[ROTARY].is_meta:
        table = torch.view_as_real(rotary_table(config))
        table = torch.cat([torch.zeros(config.cls_token_num, *table.shape[1:]), table])
        stored = tensors[ROTARY].float()
        if stored.shape != table.shape or not torch.allclose(stored, table, atol=1e-2):
            raise CheckpointError(f"{where}: {ROTARY} is not LlamaGen's 2D rotary table; give an official checkpoint")


def check_tokenizer(tensors: Mapping[str, Tensor], config: TokenizerConfig, where: str | Path) -> None:
    """Strict names and shapes of a tokenizer; the usage statistic may be there or not."""
    with torch.device("meta"):
        tokenizer = Tokenizer(config)
    check_shapes(without(tensors, USAGE), shapes_of(tokenizer.state_dict()), where)
    check_floating(without(tensors, USAGE), where)


def convert_llamagen(
    policy: str | Path,
    tokenizer: str | Path,
    to: str | Path,
    image_size: int | None = None,
    text: str | Path | None = None,
    heads: int | None = None,
) -> dict[str, Any]:
    """Check two official files and write folder `to` (base.json, policy and tokenizer.safetensors); the manifest.

    image_size: the side in pixels, needed where neither the policy's name nor a rotary table tells. text: the local
    folder of flan-t5-xl, kept as a path relative to `to`. heads: of a policy of no official size. RankEError in one
    line for whatever does not fit; then nothing is left on disk.
    """
    policy, tokenizer, to = Path(policy), Path(tokenizer), Path(to)
    check_absent(to)
    weights, vq = read_tensors(policy), read_tensors(tokenizer)
    shape = policy_shape(weights, policy, heads)
    levels = _count(vq, r"encoder\.conv_blocks\.(\d+)\.")
    side = image_side(policy, weights, 2 ** max(levels - 1, 0), image_size)
    vq_config = tokenizer_config(vq, tokenizer, side)
    config = shape.config(vq_config.grid**2)
    check_policy(weights, config, policy)
    check_tokenizer(vq, vq_config, tokenizer)
    if config.vocab_size != vq_config.codebook_size:
        raise CheckpointError(
            f"{policy} has a vocabulary of {config.vocab_size}, {tokenizer} has {vq_config.codebook_size} codes; "
            "give a policy and the tokenizer that it was trained on"
        )
    check_finite(weights, policy)
    check_finite(vq, tokenizer)
    origin = {
        f"policy/{policy.name}": origin_of(policy, weights),
        f"tokenizer/{tokenizer.name}": origin_of(tokenizer, vq),
    }
    text_entry: dict[str, Any] = {"encoder": "t5", "tokens": config.cls_token_num, "folder": None}
    if text is not None:
        origin |= _text_origin(Path(text), config.caption_dim)
        text_entry["folder"] = relpath(abspath(text), abspath(to))
    manifest = {
        "name": shape.name,
        "policy": asdict(config),
        "tokenizer": asdict(vq_config),
        "text": text_entry,
        "origin": origin,
    }
    check_space(to, sum(tensor.nbytes for tensor in (*weights.values(), *vq.values())))
    with write_folder(to) as folder:
        save_tensors(weights, folder / "policy.safetensors")
        save_tensors(vq, folder / "tokenizer.safetensors")
        write_manifest(folder, FORMAT, manifest)
    return read_manifest(to, FORMAT)


def _text_origin(folder: Path, width: int) -> dict[str, Any]:
    """Manifest entries of a T5 folder's files, after strict checks of its tokenizer and its weights."""
    from rank_e.backbones.llamagen.text import load_t5_tokenizer, read_t5_encoder, t5_config, t5_weights_file

    config = t5_config(folder)
    if config.d_model != width:
        raise CheckpointError(
            f"{folder}: text features are {config.d_model} wide, the policy reads {width}; give flan-t5-xl"
        )
    load_t5_tokenizer(folder)
    encoder = read_t5_encoder(folder, config)
    weights = t5_weights_file(folder)
    check_finite(encoder, weights)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".model") or path == weights]
    entries: dict[str, Any] = {
        f"text/{path.name}": {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in files
    }
    entries[f"text/{weights.name}"] = origin_of(weights, encoder)
    return entries
