"""What is known of LlamaGen without loading it: sizes, its text encoder's files, converting and exporting. No torch."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rank_e.backbones.info import Sizes
from rank_e.backbones.llamagen import DECODER_PREFIXES, FORMAT, ROTARY, TEXT_TOKENIZER_FILES
from rank_e.io.headers import WEIGHT_FILES, Entry

if TYPE_CHECKING:
    from torch import Tensor

FLAN_T5_XL = 1_223_527_424
"""Parameters of flan-t5-xl's encoder."""


@dataclass(frozen=True)
class VQSizes(Sizes):
    """A policy of SwiGLU layers of width `hidden`, a VQ tokenizer with levels of width `channels` x `multipliers`."""

    hidden: int
    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int

    @property
    def grid(self) -> int:
        return int(self.image_size // 2 ** (len(self.multipliers) - 1))

    def layer_row(self, value: int) -> float:
        return self.dim * (20 + 4.3 * value) + 5 * self.hidden * value

    def decoder_image(self, value: int) -> int:
        """Inputs of norms and convolutions, and the attention of the lowest level."""
        widths = [self.channels * m for m in reversed(self.multipliers)]
        places, attention, width = self.grid**2, 7, widths[0]
        total = places * width * (2 * 4 + attention)
        for level, outputs in enumerate(widths):
            for block in range(self.residual_blocks + 1):
                total += places * (2 * width + 2 * outputs + (attention * outputs if level == 0 else 0))
                width = outputs if block == 0 else width
            if level + 1 < len(widths):
                places *= 4
                total += places * outputs
        return value * (total + 2 * places * width)


@dataclass(frozen=True)
class LlamaGenSizes(VQSizes):
    """The policy reads text features of width `text_width`."""

    text_width: int

    def text_bytes(self, value: int) -> int:
        return self.text_rows * (self.text_width * value + 1)


def read_sizes(
    manifest: Mapping[str, Any], policy: Mapping[str, Entry], tokenizer: Mapping[str, Entry], text_encoder: int
) -> LlamaGenSizes:
    """Sizes of networks of LlamaGen's architecture, whose text encoder has `text_encoder` parameters."""
    said = manifest["policy"]
    return LlamaGenSizes(
        policy=sum(entry.values for name, entry in policy.items() if name != ROTARY),
        frozen=0,
        text_encoder=text_encoder,
        layers=said["n_layer"],
        dim=said["dim"],
        hidden=policy["layers.0.feed_forward.w1.weight"].shape[0],
        vocab=said["vocab_size"],
        length=said["block_size"],
        text_rows=said["cls_token_num"],
        text_width=said["caption_dim"],
        **tokenizer_sizes(manifest["tokenizer"], tokenizer),
    )


def tokenizer_sizes(said: Mapping[str, Any], tensors: Mapping[str, Entry]) -> dict[str, Any]:
    """The fields of `VQSizes` that a tokenizer decides: what base.json says of it, and its header."""
    return {
        "tokenizer": sum(entry.values for entry in tensors.values()),
        "decoder": sum(entry.values for name, entry in tensors.items() if name.startswith(DECODER_PREFIXES)),
        "codes": said["codebook_size"],
        "image_size": said["image_size"],
        "channels": said["channels"],
        "multipliers": tuple(said["channel_multipliers"]),
        "residual_blocks": said["residual_blocks"],
    }


VQ16: dict[str, Any] = {
    "tokenizer": 71_883_403,
    "decoder": 42_452_099,
    "codes": 16384,
    "channels": 128,
    "multipliers": (1, 1, 2, 2, 4),
    "residual_blocks": 2,
}
"""The published tokenizer's fields of `VQSizes`."""
XL: dict[str, Any] = {
    "policy": 777_923_840,
    "frozen": 0,
    "text_encoder": FLAN_T5_XL,
    "layers": 36,
    "dim": 1280,
    "hidden": 3584,
    "vocab": 16384,
    "text_rows": 120,
    "text_width": 2048,
    **VQ16,
}
TABLES = {
    "policy": ("tok_embeddings.weight", "output.weight"),
    "tokenizer": ("quantize.embedding.weight",),
}
DECODER_ALONE = "the decoder and post_quant_conv alone"


class LlamaGenConverter:
    """LlamaGen's two official files, and the local folder of its text encoder."""

    summary = "LlamaGen's policy file and VQ file"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("policy", type=Path, help="such as t2i_XL_stage1_256.pt")
        parser.add_argument("vq", type=Path, help="such as vq_ds16_t2i.pt")
        parser.add_argument("--text", type=Path, metavar="FOLDER", help="the local folder of flan-t5-xl")
        parser.add_argument("--image-size", type=int, metavar="PIXELS", help="where no file tells it")
        parser.add_argument("--heads", type=int, metavar="N", help="for a policy of no official size")

    def convert(self, given: Namespace, to: Path) -> dict[str, Any]:
        from rank_e.backbones.llamagen.convert import convert_llamagen

        return convert_llamagen(given.policy, given.vq, to, given.image_size, given.text, given.heads)


class LlamaGenInfo:
    """LlamaGen's `BackboneInfo`."""

    format = FORMAT
    tables = TABLES
    published: ClassVar[Mapping[str, Sizes]] = {
        "llamagen-xl-256": LlamaGenSizes(**XL, length=256, image_size=256),
        "llamagen-xl-512": LlamaGenSizes(**XL, length=1024, image_size=512),
    }
    converter = LlamaGenConverter()
    exported: ClassVar[Mapping[str, str]] = {
        "t2i_*": "the policy",
        "vq_*": "the tokenizer with the decoder",
        "decoder.*": DECODER_ALONE,
    }

    def sizes(self, manifest: Mapping[str, Any], policy: Mapping[str, Entry], tokenizer: Mapping[str, Entry]) -> Sizes:
        return read_sizes(manifest, policy, tokenizer, FLAN_T5_XL)

    def problems(self, folder: Path, manifest: Mapping[str, Any]) -> list[str]:
        return list(self._text_problems(folder, manifest["text"]["folder"]))

    def _text_problems(self, folder: Path, named: str | None) -> Iterator[str]:
        """What the text encoder lacks, which lies outside the base's folder."""
        if named is None:
            yield f"backbone.base: {folder} names no text encoder; convert it again with --text FOLDER of flan-t5-xl"
            return
        place = folder / named
        needed = {"config": ("config.json",), "weights": WEIGHT_FILES, "tokenizer": TEXT_TOKENIZER_FILES}
        for content, names in needed.items():
            if not any((place / name).is_file() for name in names):
                listed = ", ".join(names)
                yield f"backbone.base: text encoder: {place} holds no {content} ({listed}); copy flan-t5-xl there"

    def export(self, base: Path, to: Path, policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
        from rank_e.backbones.llamagen.export import export_llamagen

        export_llamagen(base, to, policy, decoder)
