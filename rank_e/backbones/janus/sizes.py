"""What is known of Janus-Pro without loading it: sizes, converting and exporting. No torch."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rank_e.backbones.info import Sizes
from rank_e.backbones.janus import FORMAT, TEXT_EMBEDDING
from rank_e.backbones.llamagen.sizes import DECODER_ALONE, VQ16, VQSizes, tokenizer_sizes
from rank_e.io.headers import Entry

if TYPE_CHECKING:
    from torch import Tensor

TEXT_ROWS = 96
"""Ids that a prompt is reckoned with; they are as many as the longest prompt of a batch has."""


@dataclass(frozen=True)
class JanusSizes(VQSizes):
    """The policy reads ids; its layers keep for the backward pass what LlamaGen's do."""

    def text_bytes(self, value: int) -> int:
        """An int64 id and a bool a row, whatever a feature would take."""
        return self.text_rows * 9


class JanusConverter:
    """A Hugging Face folder."""

    summary = "a Hugging Face folder of Janus-Pro"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("checkpoint", type=Path, help="such as the folder of deepseek-community/Janus-Pro-1B")

    def convert(self, given: Namespace, to: Path) -> dict[str, Any]:
        from rank_e.backbones.janus.convert import convert_janus

        return convert_janus(given.checkpoint, to)


class JanusInfo:
    """Janus-Pro's `BackboneInfo`."""

    format = FORMAT
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "policy": ("generation_embeddings.weight",),
        "tokenizer": ("quantize.embedding.weight",),
    }
    published: ClassVar[Mapping[str, Sizes]] = {
        "janus-pro-1b": JanusSizes(
            policy=1_275_338_752,
            frozen=209_715_200,
            text_encoder=0,
            layers=24,
            dim=2048,
            hidden=5632,
            vocab=16384,
            length=576,
            text_rows=TEXT_ROWS,
            image_size=384,
            **VQ16,
        )
    }
    converter = JanusConverter()
    exported: ClassVar[Mapping[str, str]] = {
        "model*": "the whole model; transformers loads the folder",
        "decoder.safetensors": DECODER_ALONE,
    }

    def sizes(self, manifest: Mapping[str, Any], policy: Mapping[str, Entry], tokenizer: Mapping[str, Entry]) -> Sizes:
        said = manifest["policy"]
        return JanusSizes(
            policy=sum(entry.values for name, entry in policy.items() if name != TEXT_EMBEDDING),
            frozen=policy[TEXT_EMBEDDING].values,
            text_encoder=0,
            layers=said["num_hidden_layers"],
            dim=said["hidden_size"],
            hidden=policy["language_model.layers.0.mlp.gate_proj.weight"].shape[0],
            vocab=said["vocab_size"],
            length=said["length"],
            text_rows=TEXT_ROWS,
            **tokenizer_sizes(manifest["tokenizer"], tokenizer),
        )

    def problems(self, folder: Path, manifest: Mapping[str, Any]) -> list[str]:
        """None: all that a Janus reads lies in its folder."""
        return []

    def export(self, base: Path, to: Path, policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
        from rank_e.backbones.janus.export import export_janus

        export_janus(base, to, policy, decoder)
