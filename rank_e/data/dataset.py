"""Where a run's prompts and real images come from: one protocol for files, the embedded world and a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Originals(NamedTuple):
    """Real images as they are stored (uint8 [3, H, W], sizes may differ) and their captions."""

    images: list[Tensor]
    captions: list[str]


class CaptionedImage(NamedTuple):
    """A real image (float32 [3, S, S] in [0, 1], at the backbone's size) and its own caption."""

    image: Tensor
    caption: str


@runtime_checkable
class Dataset(Protocol):
    """Prompts and real images; every answer is a function of its arguments alone."""

    def prompts(self, count: int, seed: int) -> list[tuple[str, str]]:
        """`count` (prompt, category "" where none is known), none twice while there are enough."""
        ...

    def real_images(self, prompts: Sequence[str], seed: int) -> Tensor:
        """As many real images as prompts: float32 [N, 3, S, S] in [0, 1] at the backbone's size."""
        ...

    def captioned_images(self, count: int, seed: int, start: int = 0) -> Iterator[CaptionedImage]:
        """Number `start` to `count` of the `count` that `seed` gives, read one by one; from any `start` the same.

        None comes twice while there are enough, but for the one that takes the place of one that cannot be read.
        """
        ...

    def originals(self, start: int, stop: int, prompts: Sequence[str], seed: int) -> Originals:
        """Real images number start to stop of the order that `seed` gives; `prompts` are what will be compared."""
        ...

    def skipped(self) -> list[dict[str, str]]:
        """What could not be read so far, and was replaced: name and reason of each sample."""
        ...
