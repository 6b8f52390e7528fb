"""What is known of the embedded world's base without loading it: sizes and exporting. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rank_e.backbones.info import Sizes
from rank_e.backbones.llamagen.sizes import DECODER_ALONE, TABLES, read_sizes
from rank_e.io.headers import Entry
from rank_e.shapes import FORMAT

if TYPE_CHECKING:
    from torch import Tensor


class ShapesInfo:
    """The embedded world's `BackboneInfo`: LlamaGen's networks at toy size, trained here and not converted."""

    format = FORMAT
    tables = TABLES
    published: ClassVar[Mapping[str, Sizes]] = {}
    converter = None
    exported: ClassVar[Mapping[str, str]] = {
        "base.json": "with it the folder can be backbone.base",
        "policy.safetensors": "the policy",
        "tokenizer.safetensors": "the tokenizer with the decoder",
        "decoder.safetensors": DECODER_ALONE,
    }

    def sizes(self, manifest: Mapping[str, Any], policy: Mapping[str, Entry], tokenizer: Mapping[str, Entry]) -> Sizes:
        return read_sizes(manifest, policy, tokenizer, text_encoder=0)

    def problems(self, folder: Path, manifest: Mapping[str, Any]) -> list[str]:
        """None: all that it reads lies in its folder."""
        return []

    def export(self, base: Path, to: Path, policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
        from rank_e.shapes.export import export_shapes

        export_shapes(base, to, policy, decoder)
