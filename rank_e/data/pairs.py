"""Images with captions for training and for reference statistics, in a seeded order that goes on anywhere.

The order of epoch e is a permutation drawn from the seed and e alone. Of `world` readers, reader r takes the
places r, r + world, ... of every epoch: each sample is in exactly one shard, and within an epoch the k-th batches
of all readers hold together what the k-th batch of a single reader would. A reader's stream runs through its epochs
without end; its state is one number, the next position. A bad sample is skipped and the batch filled from behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.images import UndecodableError, decode_image, square
from rank_e.data.report import BadSamples
from rank_e.data.samples import Samples
from rank_e.seeds import generator


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [N, 3, S, S], N `captions`, `indices` int64 [N] in the source; `next_start`: go on there."""

    images: Tensor
    captions: list[str]
    indices: Tensor
    next_start: int


class PairSource:
    """`samples` read as square images of `image_size` pixels; `new_report` counts what cannot be read.

    `where` names the source's parameters in errors.
    """

    def __init__(self, samples: Samples, image_size: int, max_bad_share: float = 0.01, where: str = "data") -> None:
        if image_size < 1:
            raise DataError(f"{where}.image_size is {image_size}; give the backbone's image size in pixels")
        if not 0 <= max_bad_share < 1:
            raise DataError(f"{where}.max_bad_share is {max_bad_share}; give a share of at least 0 and below 1")
        self.samples = samples
        self.image_size = image_size
        self.max_bad_share = max_bad_share
        self.where = where

    def __len__(self) -> int:
        return len(self.samples)

    def order(self, seed: int | None, epoch: int = 0) -> Tensor:
        """The permutation of one epoch, int64 [len]: place -> index. Seed None: as stored, in every epoch."""
        if seed is None:
            return torch.arange(len(self))
        return torch.randperm(len(self), generator=generator(seed, "data", "order", epoch))

    def caption(self, index: int) -> str:
        """A sample's caption, without touching its image. Raises BadSampleError."""
        return self.samples.caption(self._checked(index))

    def image(self, index: int) -> Image.Image:
        """A sample's image at full size (RGB), for a protocol with a resize of its own. Raises BadSampleError."""
        try:
            return decode_image(self.samples.image(self._checked(index)))
        except UndecodableError as error:
            raise BadSampleError(self.samples.name(index), str(error)) from None

    def read(self, index: int) -> tuple[Tensor, str]:
        """Image uint8 [3, S, S] (`images.square`) and caption of a sample. Raises BadSampleError."""
        caption = self.caption(index)
        return square(self.image(index), self.image_size), caption

    def new_report(self, rank: int = 0, world: int = 1) -> BadSamples:
        """An empty report for reader `rank`: its limit is the share of the samples in its own shard."""
        return BadSamples(self.shard_length(rank, world), self.max_bad_share, self.where)

    def shard_length(self, rank: int, world: int) -> int:
        """Samples an epoch that reader `rank` of `world` takes. DataError when there are none."""
        if not 0 <= rank < world:
            raise DataError(f"reader {rank} of {world}: give 0 <= rank < world")
        if len(self) < world:
            raise DataError(f"{len(self)} samples for {world} readers; give at least one for each")
        return len(range(rank, len(self), world))

    def batches(
        self,
        batch_size: int,
        seed: int | None,
        *,
        start: int = 0,
        epochs: int | None = None,
        rank: int = 0,
        world: int = 1,
        report: BadSamples | None = None,
        workers: int = 0,
    ) -> Iterator[Batch]:
        """Batches from position `start` of a reader's stream on, reading nothing before it.

        Without `epochs` no end, every batch full; with it the stream ends after as many epochs (counted from
        position 0) and the last batch may be smaller. Bad samples go to `report` (one of `new_report`; a run
        that goes on loads its state) and too many raise DataError. `workers` threads decode ahead; the batches
        do not depend on their number.
        """
        length = self.shard_length(rank, world)
        for name, value, least in (("batch_size", batch_size, 1), ("start", start, 0), ("workers", workers, 0)):
            if value < least:
                raise DataError(f"data batches: {name} is {value}; give at least {least}")
        report = self.new_report(rank, world) if report is None else report
        return self._batches(batch_size, self._stream(seed, start, epochs, rank, world, length), report, workers)

    def _batches(
        self, batch_size: int, stream: Iterator[tuple[int, int]], report: BadSamples, workers: int
    ) -> Iterator[Batch]:
        images: list[Tensor] = []
        captions: list[str] = []
        indices: list[int] = []
        position = 0
        for position, index, found in self._read_ahead(stream, workers):
            if isinstance(found, BadSampleError):
                report.add(index, found)
                continue
            images.append(found[0])
            captions.append(found[1])
            indices.append(index)
            if len(indices) == batch_size:
                yield Batch(torch.stack(images), captions, torch.tensor(indices), position + 1)
                images, captions, indices = [], [], []
        if indices:
            yield Batch(torch.stack(images), captions, torch.tensor(indices), position + 1)

    def _stream(
        self, seed: int | None, start: int, epochs: int | None, rank: int, world: int, length: int
    ) -> Iterator[tuple[int, int]]:
        """(position, index) from `start` on; holds one epoch's order at a time."""
        epoch, place = divmod(start, length)
        while epochs is None or epoch < epochs:
            shard = self.order(seed, epoch)[rank::world]
            for offset in range(place, length):
                yield epoch * length + offset, int(shard[offset])
            epoch, place = epoch + 1, 0

    def _read_ahead(
        self, stream: Iterator[tuple[int, int]], workers: int
    ) -> Iterator[tuple[int, int, tuple[Tensor, str] | BadSampleError]]:
        if workers == 0:
            for position, index in stream:
                yield position, index, self._try(index)
            return
        waiting: deque[tuple[int, int, Future[tuple[Tensor, str] | BadSampleError]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            try:
                for position, index in stream:
                    waiting.append((position, index, pool.submit(self._try, index)))
                    if len(waiting) > 4 * workers:
                        first = waiting.popleft()
                        yield first[0], first[1], first[2].result()
                while waiting:
                    first = waiting.popleft()
                    yield first[0], first[1], first[2].result()
            finally:  # the reader may leave in the middle
                for _, _, future in waiting:
                    future.cancel()

    def _try(self, index: int) -> tuple[Tensor, str] | BadSampleError:
        try:
            return self.read(index)
        except BadSampleError as error:
            return error

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise DataError(f"sample {index} of {len(self)}: give 0 <= index < {len(self)}")
        return index
