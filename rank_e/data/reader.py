"""Samples read as square images, in the order that a seed gives."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.images import MAX_PIXELS, UndecodableError, decode_image, square
from rank_e.data.samples import Samples
from rank_e.seeds import generator


class SampleReader:
    """`samples` as square images of `image_size` pixels; `where` names the dataset's parameters in errors.

    An image of more than `max_pixels` (width x height, as it is stored) is a bad sample.
    """

    def __init__(self, samples: Samples, image_size: int, where: str = "data", max_pixels: int = MAX_PIXELS) -> None:
        if image_size < 1:
            raise DataError(f"{where}.image_size is {image_size}; give the backbone's image size in pixels")
        self.samples = samples
        self.image_size = image_size
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.samples)

    def order(self, seed: int, epoch: int = 0) -> Tensor:
        """The permutation of one epoch, int64 [len]: place -> index; a function of seed and epoch alone."""
        return torch.randperm(len(self), generator=generator(seed, "data", "order", epoch))

    def caption(self, index: int) -> str:
        """A sample's caption, without touching its image. Raises BadSampleError."""
        return self.samples.caption(self._checked(index))

    def image(self, index: int) -> Image.Image:
        """A sample's image at full size (RGB), for a protocol with a resize of its own. Raises BadSampleError."""
        try:
            return decode_image(self.samples.image(self._checked(index)), self.max_pixels)
        except UndecodableError as error:
            raise BadSampleError(self.samples.name(index), str(error)) from None

    def read(self, index: int) -> tuple[Tensor, str]:
        """Image uint8 [3, S, S] (`images.square`) and caption of a sample. Raises BadSampleError."""
        caption = self.caption(index)
        return square(self.image(index), self.image_size), caption

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise DataError(f"sample {index} of {len(self)}: give 0 <= index < {len(self)}")
        return index
