"""A dataset of samples that lie in files: images with captions, and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import count as count_from
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rank_e.data.bad_samples import BadSamples
from rank_e.data.dataset import CaptionedImage, Originals
from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.images import MAX_PIXELS
from rank_e.data.prompts import PromptRow
from rank_e.data.reader import SampleReader
from rank_e.data.samples import Samples
from rank_e.io.pixels import from_bytes
from rank_e.seeds import generator, seed_for

Read = TypeVar("Read")


class FileDataset:
    """The `Dataset` over any `Samples`, its images `image_size` pixels wide.

    `rows`: the prompts; None takes the samples' captions. At most `max_bad_share` of the samples in [0, 1) may be bad,
    such as those of more than `max_image_pixels` (width x height); `where` names the dataset's parameters in errors;
    DataError if there is no sample. Prompts and images are chosen
    apart: the decoder's anchor needs real images, not those of the round's prompts.
    """

    def __init__(
        self,
        samples: Samples,
        image_size: int,
        rows: list[PromptRow] | None = None,
        max_bad_share: float = 0.0,
        where: str = "data",
        max_image_pixels: int = MAX_PIXELS,
    ) -> None:
        if len(samples) == 0:
            raise DataError(f"{where} holds no sample; give it images with captions, or correct the folder")
        self.reader = SampleReader(samples, image_size, where, max_image_pixels)
        self.rows, self.where = rows, where
        self._bad = BadSamples(len(samples), max_bad_share, where)

    def prompts(self, count: int, seed: int) -> list[tuple[str, str]]:
        if self.rows is None:
            return [(caption, "") for caption in self._first(count, seed, self.reader.caption)]
        places = torch.cat([_permutation(len(self.rows), seed, epoch) for epoch in range(-(-count // len(self.rows)))])
        return [(self.rows[place].text, self.rows[place].category) for place in places[:count].tolist()]

    def real_images(self, prompts: Sequence[str], seed: int) -> Tensor:
        images = self._first(len(prompts), seed, lambda index: self.reader.read(index)[0])
        return from_bytes(torch.stack(images))

    def captioned_images(self, count: int, seed: int, start: int = 0) -> Iterator[CaptionedImage]:
        """A place in the order decides alone what stands there, so that one can begin anywhere."""

        @lru_cache(maxsize=4)
        def order(epoch: int, again: int) -> Tensor:
            return self.reader.order(seed_for(seed, "instead", again) if again else seed, epoch)

        for number in range(start, count):
            epoch, place = divmod(number, len(self.reader))
            # What cannot be read gives its place to the sample that another order has there. Too many of them are an
            # error, so this ends.
            candidates = (int(order(epoch, again)[place]) for again in count_from())
            image, caption = next(found for index in candidates if (found := self._readable(index)) is not None)
            yield CaptionedImage(from_bytes(image), caption)

    def originals(self, start: int, stop: int, prompts: Sequence[str], seed: int) -> Originals:
        """DataError where the dataset has too few images. One that is damaged gives its place to the order's end."""
        if stop > len(self.reader):
            raise DataError(
                f"{self.where}: {len(self.reader)} images; evaluation.reference_images and real_images "
                f"ask for {stop}: lower them"
            )
        order = self.reader.order(seed).tolist()
        found = [self._either(order[place], order[-1 - place]) for place in range(start, stop)]
        return Originals([image for image, _ in found], [caption for _, caption in found])

    def skipped(self) -> list[dict[str, str]]:
        return [{"name": row.name, "reason": row.reason} for row in self._bad.rows()]

    def _readable(self, index: int) -> tuple[Tensor, str] | None:
        try:
            return self.reader.read(index)
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
        caption = self.reader.caption(index)
        return torch.from_numpy(np.array(self.reader.image(index))).permute(2, 0, 1).contiguous(), caption

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
            yield from self.reader.order(seed, epoch).tolist()
            epoch += 1


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "prompts", "order", epoch))
