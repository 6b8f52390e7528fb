"""Real images with their own captions: from files and from the embedded world, begun anywhere, damage replaced."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rank_e.config.data import FolderSource, ShapesSource
from rank_e.data import DataError
from rank_e.data.source import Pair, Source
from rank_e.data.sources import open_source
from rank_e.shapes import world

COUNT = 12


def folder(root: Path, broken: tuple[int, ...] = (), share: float = 0.0) -> Source:
    """Twelve images of one grey each, whose captions say which."""
    for number in range(COUNT):
        file = root / f"{number}.png"
        Image.fromarray(np.full((10, 8, 3), number * 20, dtype=np.uint8)).save(file)
        if number in broken:
            file.write_bytes(b"broken")
    rows = "".join(f"{number}.png,grey {number * 20}\n" for number in range(COUNT))
    (root / "captions.csv").write_text(f"file,caption\n{rows}")
    section = FolderSource(
        kind="folder",
        folder=str(root),
        prompts=None,
        max_bad_share=share,
        captions="captions.csv",
        column=None,
        image_column=None,
    )
    return open_source(section, 8, "data.training")


def names(pairs: list[Pair]) -> list[str]:
    return [pair.caption for pair in pairs]


def same(some: list[Pair], others: list[Pair]) -> bool:
    return names(some) == names(others) and all(
        torch.equal(a.image, b.image) for a, b in zip(some, others, strict=True)
    )


def test_a_image_comes_with_its_own_caption(tmp_path: Path) -> None:
    pairs = list(folder(tmp_path).pairs(COUNT, 3))
    for image, caption in pairs:
        assert image.dtype == torch.float32 and image.shape == (3, 8, 8)
        assert image.unique().mul(255).round().tolist() == [float(caption.removeprefix("grey "))]
    assert sorted(names(pairs)) == sorted(f"grey {number * 20}" for number in range(COUNT))  # each one once
    assert names(pairs) != names(list(folder(tmp_path).pairs(COUNT, 4)))


def test_pairs_go_on_anywhere_and_through_several_epochs(tmp_path: Path) -> None:
    source = folder(tmp_path)
    whole = list(source.pairs(30, 3))
    assert len(whole) == 30
    for start in (0, 7, 12, 29, 30):
        assert same(list(folder(tmp_path).pairs(30, 3, start)), whole[start:])
    assert same(list(source.pairs(5, 3)), whole[:5])
    epochs = [names(whole[:12]), names(whole[12:24])]
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]


def test_pairs_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    source = folder(tmp_path)
    pairs = source.pairs(10_000_000, 3)
    assert len(list(islice(pairs, 2))) == 2
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="cannot be used"):
        next(pairs)


def test_another_takes_the_place_of_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "damaged").mkdir()
    whole = list(folder(tmp_path / "whole").pairs(COUNT, 3))
    source = folder(tmp_path / "damaged", broken=(2, 5, 6, 9), share=0.4)
    found = list(source.pairs(COUNT, 3))
    bad = {f"grey {number * 20}" for number in (2, 5, 6, 9)}
    assert len(found) == COUNT and not bad & set(names(found))
    for pair, original in zip(found, whole, strict=True):
        assert original.caption in bad or same([pair], [original])
    assert [Path(row["name"]).stem for row in source.skipped()] == ["2", "5", "6", "9"]
    for start in range(COUNT):  # whatever was read before
        assert same(list(folder(tmp_path / "damaged", (2, 5, 6, 9), 0.4).pairs(COUNT, 3, start)), found[start:])
    with pytest.raises(DataError, match=r"more than data\.training\.max_bad_share"):
        list(folder(tmp_path / "damaged", (2, 5, 6, 9), 0.3).pairs(COUNT, 3))


def test_the_worlds_images_show_what_their_captions_say() -> None:
    source = open_source(ShapesSource(kind="shapes", folder="rank_e/shapes", split="train"), 48, "data.training")
    pairs = list(source.pairs(60, 3))
    images = torch.stack([pair.image for pair in pairs])
    prompts = [world.Prompt.from_text(number, pair.caption) for number, pair in enumerate(pairs)]
    assert images.shape == (60, 3, 48, 48) and float(images.min()) >= 0 and float(images.max()) <= 1
    assert world.check_images(images, prompts).float().mean() > 0.95
    assert world.check_images(images.roll(1, 0), prompts).float().mean() < 0.3
    assert {prompt.category for prompt in prompts} == set(world.SHARES)  # the world's mix
    for start in (0, 23, 60):
        assert same(list(source.pairs(60, 3, start)), pairs[start:])
    assert names(list(source.pairs(60, 4))) != names(pairs)
