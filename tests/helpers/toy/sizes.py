"""What is known of the toy without loading it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rank_e.backbones.info import Sizes
from rank_e.io.headers import Entry
from tests.helpers.toy import DIM, FORMAT, IMAGE_SIZE, LENGTH, TEXT_ROWS, VOCAB

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ToySizes(Sizes):
    @property
    def grid(self) -> int:
        return self.image_size // 2

    def text_bytes(self, value: int) -> int:
        return 9 * self.text_rows

    def layer_row(self, value: int) -> float:
        return float(value * self.dim)

    def decoder_image(self, value: int) -> int:
        return 6 * value * self.image_size**2


class ToyConverter:
    summary = "the toy's one file"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("checkpoint", type=Path)
        parser.add_argument("--negate", action="store_true", help="turn every weight round")

    def convert(self, given: Namespace, to: Path) -> dict[str, Any]:
        from tests.helpers.toy.backbone import convert_toy

        return convert_toy(given.checkpoint, to, given.negate)


class ToyInfo:
    format = FORMAT
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {"policy": ("image.weight",), "tokenizer": ("codes.weight",)}
    published: ClassVar[Mapping[str, Sizes]] = {
        "toy-1": ToySizes(
            policy=800, frozen=0, tokenizer=108, decoder=12, text_encoder=0, layers=1, dim=DIM, vocab=VOCAB,
            length=LENGTH, text_rows=TEXT_ROWS, codes=VOCAB, image_size=IMAGE_SIZE,
        )
    }  # fmt: skip
    converter = ToyConverter()
    exported: ClassVar[Mapping[str, str]] = {"toy.*": "everything"}

    def sizes(self, manifest: Mapping[str, Any], policy: Mapping[str, Entry], tokenizer: Mapping[str, Entry]) -> Sizes:
        return ToySizes(
            policy=sum(entry.values for entry in policy.values()),
            frozen=0,
            tokenizer=sum(entry.values for entry in tokenizer.values()),
            decoder=sum(entry.values for name, entry in tokenizer.items() if name.startswith("decoder.")),
            text_encoder=0,
            layers=1,
            dim=manifest["policy"]["dim"],
            vocab=manifest["policy"]["vocab"],
            length=LENGTH,
            text_rows=TEXT_ROWS,
            codes=manifest["tokenizer"]["codes"],
            image_size=manifest["tokenizer"]["image_size"],
        )

    def problems(self, folder: Path, manifest: Mapping[str, Any]) -> list[str]:
        words = folder / "words.txt"
        return [] if words.is_file() else [f"backbone.base: {words} holds no words; find some"]

    def export(self, base: Path, to: Path, policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
        from tests.helpers.toy.backbone import export_toy

        export_toy(base, to, policy, decoder)
