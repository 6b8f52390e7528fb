"""What is known of a backbone without loading it: sizes, file checks, and how bases are converted and exported.

Each backbone answers for itself: the registry names its `BackboneInfo`. Nothing here imports torch, nor does a module
that holds a `BackboneInfo`; its methods `convert` and `export` import what they need when they are called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rank_e.backbones import imported, paths_of
from rank_e.io.headers import Entry
from rank_e.io.manifest import Format

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sizes(ABC):
    """A base's numbers of parameters and its shapes; a backbone adds what its own formulas need.

    policy: what a round trains and stores; frozen: what the policy has beside it; decoder: of the tokenizer's, what a
    round trains; text_encoder: 0 where the policy reads ids. The policy has layers of width dim, a vocabulary of vocab
    image tokens, length of them in an image, behind text_rows rows of a prompt. codes: the tokenizer's codebook;
    image_size: side in pixels.
    """

    policy: int
    frozen: int
    tokenizer: int
    decoder: int
    text_encoder: int
    layers: int
    dim: int
    vocab: int
    length: int
    text_rows: int
    codes: int
    image_size: int

    @property
    @abstractmethod
    def grid(self) -> int:
        """Side of the token grid that an image of `image_size` has."""

    @abstractmethod
    def text_bytes(self, value: int) -> int:
        """Bytes of one prompt's text and mask in a prompts artifact, at `value` bytes a number."""

    @abstractmethod
    def layer_row(self, value: int) -> float:
        """Bytes that one of the policy's layers keeps for one row's backward pass, at `value` bytes a number."""

    @abstractmethod
    def decoder_image(self, value: int) -> int:
        """Bytes that the decoder keeps for one image's backward pass, at `value` bytes a number."""


class Converter(Protocol):
    """How official files become a base folder: `rank-e convert NAME ARGUMENTS --to FOLDER`."""

    @property
    def summary(self) -> str:
        """What is converted, for the command's help."""
        ...

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the backbone's own arguments, all but --to."""
        ...

    def convert(self, given: Namespace, to: Path) -> dict[str, Any]:
        """Write the base folder `to`, whole or not at all; its manifest. RankEError for whatever does not fit."""
        ...


class BackboneInfo(Protocol):
    """All that is known of one backbone before it is loaded; the registry names its class, which takes no arguments."""

    @property
    def format(self) -> Format:
        """What its base.json says under `format`, and how a user gets such a folder."""
        ...

    @property
    def published(self) -> Mapping[str, Sizes]:
        """Sizes of published bases by the folder names of docs/reproduce.md."""
        ...

    @property
    def tables(self) -> Mapping[str, Sequence[str]]:
        """The tensors with a row for each image token, by the file ("policy", "tokenizer") that holds them."""
        ...

    @property
    def converter(self) -> Converter | None:
        """None where there is nothing to convert."""
        ...

    @property
    def exported(self) -> Mapping[str, str]:
        """What the files of an export hold, by pattern of their names."""
        ...

    def sizes(self, manifest: Mapping[str, Any], policy: Mapping[str, Entry], tokenizer: Mapping[str, Entry]) -> Sizes:
        """Sizes by base.json and the headers of policy.safetensors and tokenizer.safetensors.

        KeyError, TypeError or ValueError where they do not tell.
        """
        ...

    def problems(self, folder: Path, manifest: Mapping[str, Any]) -> Sequence[str]:
        """What the base lacks beyond the files that its manifest lists (a text encoder elsewhere), a line each."""
        ...

    def export(self, base: Path, to: Path, policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
        """Write trained weights over the base as the new folder `to`, in the layout that the base came from.

        policy, decoder: as the stages store them. RankEError for weights that do not fit; then `to` does not exist.
        """
        ...


def backbone_info(name: str) -> BackboneInfo:
    """What is known of the backbone called `name`; RankEError names an unknown one."""
    info: BackboneInfo = imported(paths_of(name).info)()
    return info
