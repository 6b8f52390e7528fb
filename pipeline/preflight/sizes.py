"""What a base is made of, in numbers: read off its manifest and safetensors headers, or known of a published one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rank_e.errors import RankEError
from rank_e.io.headers import Entry, read_header

FORMATS = {"shapes": None, "llamagen": "llamagen-t2i", "janus": "janus"}
"""backbone.name -> the format that its base.json names."""
DECODER = ("decoder.", "post_quant_conv.")
UNTRAINED = ("freqs_cis", "language_model.embed_tokens.weight")  # a rotary table; Janus' text embedding
TEXT_ROWS = 96
"""Ids that a Janus prompt is reckoned with; they are as many as the longest prompt has."""
VALUE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Sizes:
    """A base's numbers of parameters and its shapes.

    policy: what a round trains and stores; frozen: what the policy has beside it; decoder: of the tokenizer's, what a
    round trains. text_rows x text_width values are what a prompt's text takes; text_width 0: int64 ids.
    """

    policy: int
    frozen: int
    tokenizer: int
    decoder: int
    text_encoder: int
    layers: int
    dim: int
    hidden: int
    vocab: int
    length: int
    text_rows: int
    text_width: int
    image_size: int
    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int

    def text_bytes(self, value: int) -> int:
        """Bytes of one prompt's text in a prompts artifact, with its mask, at `value` bytes a feature."""
        return self.text_rows * (self.text_width * value + 1 if self.text_width else 9)


VQ16: dict[str, Any] = {"channels": 128, "multipliers": (1, 1, 2, 2, 4), "residual_blocks": 2}
XL: dict[str, Any] = {
    "policy": 777_923_840,
    "frozen": 0,
    "tokenizer": 71_883_403,
    "decoder": 42_452_099,
    "text_encoder": 1_223_527_424,  # flan-t5-xl's encoder
    "layers": 36,
    "dim": 1280,
    "hidden": 3584,
    "vocab": 16384,
    "text_rows": 120,
    "text_width": 2048,
    **VQ16,
}
OFFICIAL = {
    "llamagen-xl-256": Sizes(**XL, length=256, image_size=256),
    "llamagen-xl-512": Sizes(**XL, length=1024, image_size=512),
    "janus-pro-1b": Sizes(
        policy=1_275_338_752,
        frozen=209_715_200,
        tokenizer=71_883_403,
        decoder=42_452_099,
        text_encoder=0,
        layers=24,
        dim=2048,
        hidden=5632,
        vocab=16384,
        length=576,
        text_rows=TEXT_ROWS,
        text_width=0,
        image_size=384,
        **VQ16,
    ),
}
"""Published bases by the folder names of docs/reproduce.md: a base folder of such a name must hold that model."""


def read_base(name: str, folder: Path) -> tuple[Sizes, list[str]]:
    """The sizes of the base in `folder`, and what does not fit in it, a line each.

    RankEError for a manifest or a header that cannot be read at all.
    """
    manifest = read_manifest(name, folder)
    policy, vq = (read_header(folder / f"{part}.safetensors") for part in ("policy", "tokenizer"))
    try:
        sizes = _sizes(name, manifest, policy, vq)
    except (KeyError, TypeError, ValueError):
        raise RankEError(f"backbone.base: {folder / 'base.json'} lacks sizes; convert the base again") from None
    return sizes, _misfits(folder, manifest, sizes, policy, vq)


def read_manifest(name: str, folder: Path) -> dict[str, Any]:
    """base.json of a folder; RankEError where it is missing, damaged or of another backbone's format."""
    path = folder / "base.json"
    fix = "check it out again or run `make base`" if name == "shapes" else f"run `rank-e convert ... --to {folder}`"
    if not path.is_file():
        raise RankEError(f"backbone.base: {path} does not exist; {fix}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = manifest.get("format")
        complete = {"files", "policy", "tokenizer"} <= manifest.keys()
    except (ValueError, AttributeError):
        complete, found = False, None
    if not complete:
        raise RankEError(f"backbone.base: {path} is not a base's manifest; {fix}")
    if found != FORMATS[name]:
        raise RankEError(
            f"backbone.base: {path} is of format {found!r}, backbone {name} reads {FORMATS[name]!r}; {fix}"
        )
    return manifest


def _sizes(name: str, manifest: dict[str, Any], policy: dict[str, Entry], vq: dict[str, Entry]) -> Sizes:
    said, image = manifest["policy"], manifest["tokenizer"]
    trained = [entry.values for key, entry in policy.items() if key not in UNTRAINED]
    janus = name == "janus"
    first = "language_model.layers.0.mlp.gate_proj.weight" if janus else "layers.0.feed_forward.w1.weight"
    return Sizes(
        policy=sum(trained),
        frozen=policy[UNTRAINED[1]].values if janus else 0,
        tokenizer=sum(entry.values for entry in vq.values()),
        decoder=sum(entry.values for key, entry in vq.items() if key.startswith(DECODER)),
        text_encoder=XL["text_encoder"] if name == "llamagen" else 0,
        layers=said["num_hidden_layers" if janus else "n_layer"],
        dim=said["hidden_size" if janus else "dim"],
        hidden=policy[first].shape[0],
        vocab=said["vocab_size"],
        length=said["length" if janus else "block_size"],
        text_rows=TEXT_ROWS if janus else said["cls_token_num"],
        text_width=0 if janus else said["caption_dim"],
        image_size=image["image_size"],
        channels=image["channels"],
        multipliers=tuple(image["channel_multipliers"]),
        residual_blocks=image["residual_blocks"],
    )


def _misfits(
    folder: Path, manifest: dict[str, Any], sizes: Sizes, policy: dict[str, Entry], vq: dict[str, Entry]
) -> list[str]:
    """What in the folder contradicts itself, or the published model that its name stands for."""
    found: list[str] = []
    again = "convert the base again from files that belong together"

    def same(what: str, value: object, wanted: object, fix: str = again) -> None:
        if value != wanted:
            found.append(f"backbone.base: {folder}: {what}; {fix}")

    places = (sizes.image_size // 2 ** (len(sizes.multipliers) - 1)) ** 2
    text = f"{sizes.length} tokens an image, but {sizes.image_size} pixels give {places}"
    same(text, sizes.length, places)
    codes = manifest["tokenizer"]["codebook_size"]
    same(f"the policy's vocabulary of {sizes.vocab} is not the tokenizer's codebook of {codes}", sizes.vocab, codes)
    names = ("tok_embeddings.weight", "output.weight", "generation_embeddings.weight")
    for table, key, rows in [(policy, name, sizes.vocab) for name in names] + [
        (vq, "quantize.embedding.weight", codes)
    ]:
        if key in table:
            held = table[key].shape[0]
            same(f"{key} has {held} rows, base.json says {rows}", held, rows)
    if folder.name in OFFICIAL:
        known = OFFICIAL[folder.name]
        for key, unit in (("image_size", "pixels"), ("length", "tokens"), ("layers", "layers"), ("dim", "wide")):
            value, wanted = getattr(sizes, key), getattr(known, key)
            fix = f"convert the published model to {folder}, or name the folder otherwise"
            same(f"{value} {unit}, {folder.name} has {wanted}", value, wanted, fix)
    return found
