"""The source that `params.yaml` names: the embedded world, or files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import count as count_from
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.pairs import PairSource
from rank_e.data.prompts import PromptRow, open_prompts
from rank_e.data.samples import Samples, open_coco, open_folder, open_webdataset
from rank_e.data.source import Originals, Pair, Source
from rank_e.io.pixels import from_bytes
from rank_e.seeds import generator, seed_for

if TYPE_CHECKING:
    from rank_e.config.data import CocoSource, FolderSource, PromptFile, ShapesSource, WebdatasetSource

Read = TypeVar("Read")


class FileSource:
    """Images with captions, and prompts: the captions, or those of a file. `size`: the backbone's, in pixels.

    Prompts and images are drawn apart: the decoder's anchor needs real images, not those of the round's prompts.
    """

    def __init__(self, pairs: PairSource, rows: list[PromptRow] | None) -> None:
        self.samples, self.rows = pairs, rows
        self._bad = pairs.new_report()

    def prompts(self, count: int, seed: int) -> list[tuple[str, str]]:
        if self.rows is None:
            return [(caption, "") for caption in self._first(count, seed, self.samples.caption)]
        places = torch.cat([_permutation(len(self.rows), seed, epoch) for epoch in range(-(-count // len(self.rows)))])
        return [(self.rows[place].text, self.rows[place].category) for place in places[:count].tolist()]

    def real_images(self, prompts: Sequence[str], seed: int) -> Tensor:
        images = self._first(len(prompts), seed, lambda index: self.samples.read(index)[0])
        return from_bytes(torch.stack(images))

    def pairs(self, count: int, seed: int, start: int = 0) -> Iterator[Pair]:
        """A place in the order decides alone what stands there, so that one can begin anywhere."""

        @lru_cache(maxsize=4)
        def order(epoch: int, again: int) -> Tensor:
            return self.samples.order(seed_for(seed, "instead", again) if again else seed, epoch)

        for number in range(start, count):
            epoch, place = divmod(number, len(self.samples))
            # What cannot be read gives its place to the sample that another order has there. Too many of them are an
            # error, so this ends.
            candidates = (int(order(epoch, again)[place]) for again in count_from())
            image, caption = next(found for index in candidates if (found := self._readable(index)) is not None)
            yield Pair(from_bytes(image), caption)

    def originals(self, start: int, stop: int, prompts: Sequence[str], seed: int) -> Originals:
        """DataError where the source has too few images. One that is damaged gives its place to the order's end."""
        if stop > len(self.samples):
            raise DataError(
                f"{self.samples.where}: {len(self.samples)} images; evaluation.reference_images and real_images "
                f"ask for {stop}: lower them"
            )
        order = self.samples.order(seed).tolist()
        found = [self._either(order[place], order[-1 - place]) for place in range(start, stop)]
        return Originals([image for image, _ in found], [caption for _, caption in found])

    def skipped(self) -> list[dict[str, str]]:
        return [{"name": row.name, "reason": row.reason} for row in self._bad.rows()]

    def _readable(self, index: int) -> tuple[Tensor, str] | None:
        try:
            return self.samples.read(index)
        except BadSampleError as error:
            self._bad.add(index, error)
            return None

    def _either(self, index: int, spare: int) -> tuple[Tensor, str]:
        try:
            return self._original(index)
        except BadSampleError as error:
            self._bad.add(index, error)
        try:
            return self._original(spare)
        except BadSampleError as error:
            raise DataError(f"{error}, and so is the sample that would take its place; fix the data") from None

    def _original(self, index: int) -> tuple[Tensor, str]:
        caption = self.samples.caption(index)
        return torch.from_numpy(np.array(self.samples.image(index))).permute(2, 0, 1).contiguous(), caption

    def _first(self, count: int, seed: int, read: Callable[[int], Read]) -> list[Read]:
        """The first `count` samples of the seed's order that can be read; the others are counted."""
        found: list[Read] = []
        for index in self._order(seed):
            try:
                found.append(read(index))
            except BadSampleError as error:
                self._bad.add(index, error)
            if len(found) == count:
                return found
        raise AssertionError("an endless order ended")

    def _order(self, seed: int) -> Iterator[int]:
        epoch = 0
        while True:
            yield from self.samples.order(seed, epoch).tolist()
            epoch += 1


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "prompts", "order", epoch))


def open_source(
    section: ShapesSource | WebdatasetSource | FolderSource | CocoSource, image_size: int, where: str
) -> Source:
    """The source that `section` of the parameters names; DataError (naming `where`) for what is not there."""
    if section.kind == "shapes":
        from rank_e.shapes.dataset import ShapesSource as Shapes

        return Shapes(section.split)
    folder = Path(section.folder)
    if not folder.is_dir():
        raise DataError(f"{where}.folder: {folder} does not exist; put the data there or correct the path")
    return FileSource(
        PairSource(_samples(section, folder, where), image_size, section.max_bad_share, where),
        _prompt_rows(section.prompts, folder),
    )


def _samples(section: Any, folder: Path, where: str) -> Samples:
    if section.kind == "webdataset":
        return open_webdataset(str(folder / section.tars), section.column, where)
    if section.kind == "folder":
        return open_folder(folder, folder / section.captions, section.column, section.image_column, where)
    return open_coco(folder, section.split, section.every_caption)


def _prompt_rows(section: PromptFile | None, folder: Path) -> list[PromptRow] | None:
    return None if section is None else open_prompts(folder / section.file, section.column, section.category)
