"""The embedded world as a dataset: prompts and real images are drawn on demand, as many as are asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from rank_e.data.dataset import CaptionedImage, Originals
from rank_e.data.errors import DataError
from rank_e.io.pixels import to_bytes
from rank_e.seeds import seed_for
from rank_e.shapes import world
from rank_e.shapes.scene import SIZE


class ShapesDataset:
    """One of the world's splits; nothing in it can be damaged."""

    def __init__(self, split: str) -> None:
        self.split = split

    def prompts(self, count: int, seed: int) -> list[tuple[str, str]]:
        """`count` (prompt, category), a function of the seed."""
        return [(prompt.text, prompt.category) for prompt in world.prompts(self.split, count, seed)]

    def real_images(self, prompts: Sequence[str], seed: int) -> Tensor:
        """An image of each prompt's own scene: float32 [N, 3, 48, 48] in [0, 1]."""
        named = [world.Prompt.from_text(index, text) for index, text in enumerate(prompts)]
        return world.images([world.scene_for(prompt, seed) for prompt in named])

    def captioned_images(self, count: int, seed: int, start: int = 0) -> Iterator[CaptionedImage]:
        """`count` prompts in the world's mix, each with an image of a scene of its own."""
        for prompt in world.prompts(self.split, count, seed)[start:]:
            yield CaptionedImage(world.images([world.scene_for(prompt, seed)])[0], prompt.text)

    def originals(self, start: int, stop: int, prompts: Sequence[str], seed: int) -> Originals:
        """Image i shows prompt i modulo their number, each time in another scene: exactly the prompts' mix."""
        places = [divmod(index, len(prompts)) for index in range(start, stop)]
        named = [(copy, world.Prompt.from_text(place, prompts[place])) for copy, place in places]
        scenes = [world.scene_for(prompt, seed_for(seed, "copy", copy)) for copy, prompt in named]
        images = to_bytes(world.images(scenes))
        return Originals(list(images), [prompts[place] for _, place in places])

    def skipped(self) -> list[dict[str, str]]:
        """Nothing: what is drawn is always whole."""
        return []


def open_dataset(folder: Path, image_size: int, split: str) -> ShapesDataset:
    """What `kind: rank_e.shapes.dataset:open_dataset` names; `folder` holds the code that draws, for DVC to watch."""
    if split not in world.SPLITS:
        raise DataError(f"split = {split!r}: must be one of {', '.join(world.SPLITS)}")
    if image_size != SIZE:
        raise DataError(f"the embedded world's images are {SIZE} pixels wide, the backbone's {image_size}")
    return ShapesDataset(split)
