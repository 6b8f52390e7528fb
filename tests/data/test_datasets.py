"""Datasets: real images with their own captions, begun anywhere, damage replaced; one's own by dotted path."""

import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from rank_e.config.data import DatasetParams, FolderParams
from rank_e.data import BadSampleError, CaptionedImage, DataError, Dataset, FileDataset, open_dataset
from rank_e.data.reader import SampleReader
from rank_e.shapes import world

COUNT = 12
SHAPES = {"kind": "rank_e.shapes.dataset:open_dataset", "folder": "rank_e/shapes", "split": "train"}
OWN = """
from rank_e.data import FileDataset

class Greys:
    def __init__(self, folder):
        self.files = sorted(folder.glob("*.png"))
    def __len__(self):
        return len(self.files)
    def name(self, index):
        return self.files[index].name
    def caption(self, index):
        return f"file {self.files[index].stem}"
    def image(self, index):
        return self.files[index].read_bytes()

def open_greys(folder, image_size, share=0.0):
    return FileDataset(Greys(folder), image_size, max_bad_share=share)

def no_dataset(folder, image_size):
    return [folder]
"""


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="photos holds no sample; give it images with captions"):
        FileDataset([], 8, where="photos")  # type: ignore[arg-type]


def opened(section: dict[str, Any], image_size: int = 8) -> Dataset:
    """A dataset from a section as params.yaml has it."""
    return open_dataset(TypeAdapter(DatasetParams).validate_python(section), image_size, "data.training")


def folder(root: Path, broken: tuple[int, ...] = (), share: float = 0.0) -> Dataset:
    """Twelve images of one grey each, whose captions say which."""
    for number in range(COUNT):
        file = root / f"{number}.png"
        Image.fromarray(np.full((10, 8, 3), number * 20, dtype=np.uint8)).save(file)
        if number in broken:
            file.write_bytes(b"broken")
    rows = "".join(f"{number}.png,grey {number * 20}\n" for number in range(COUNT))
    (root / "captions.csv").write_text(f"file,caption\n{rows}")
    section = FolderParams(
        kind="folder",
        folder=str(root),
        prompts=None,
        max_bad_share=share,
        max_image_pixels=1000,
        captions="captions.csv",
        column=None,
        image_column=None,
    )
    return open_dataset(section, 8, "data.training")


def names(found: list[CaptionedImage]) -> list[str]:
    return [item.caption for item in found]


def same(some: list[CaptionedImage], others: list[CaptionedImage]) -> bool:
    return names(some) == names(others) and all(
        torch.equal(a.image, b.image) for a, b in zip(some, others, strict=True)
    )


def test_an_image_comes_with_its_own_caption(tmp_path: Path) -> None:
    found = list(folder(tmp_path).captioned_images(COUNT, 3))
    for image, caption in found:
        assert image.dtype == torch.float32 and image.shape == (3, 8, 8)
        assert image.unique().mul(255).round().tolist() == [float(caption.removeprefix("grey "))]
    assert sorted(names(found)) == sorted(f"grey {number * 20}" for number in range(COUNT))  # each one once
    assert names(found) != names(list(folder(tmp_path).captioned_images(COUNT, 4)))


def test_captioned_images_go_on_anywhere_and_through_several_epochs(tmp_path: Path) -> None:
    dataset = folder(tmp_path)
    whole = list(dataset.captioned_images(30, 3))
    assert len(whole) == 30
    for start in (0, 7, 12, 29, 30):
        assert same(list(folder(tmp_path).captioned_images(30, 3, start)), whole[start:])
    assert same(list(dataset.captioned_images(5, 3)), whole[:5])
    epochs = [names(whole[:12]), names(whole[12:24])]
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]


def test_captioned_images_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    found = folder(tmp_path).captioned_images(10_000_000, 3)
    assert len(list(islice(found, 2))) == 2
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="cannot be used"):
        next(found)


def test_another_takes_the_place_of_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "damaged").mkdir()
    whole = list(folder(tmp_path / "whole").captioned_images(COUNT, 3))
    dataset = folder(tmp_path / "damaged", broken=(2, 5, 6, 9), share=0.4)
    found = list(dataset.captioned_images(COUNT, 3))
    bad = {f"grey {number * 20}" for number in (2, 5, 6, 9)}
    assert len(found) == COUNT and not bad & set(names(found))
    for item, original in zip(found, whole, strict=True):
        assert original.caption in bad or same([item], [original])
    assert [Path(row["name"]).stem for row in dataset.skipped()] == ["2", "5", "6", "9"]
    for start in range(COUNT):  # whatever was read before
        again = folder(tmp_path / "damaged", (2, 5, 6, 9), 0.4).captioned_images(COUNT, 3, start)
        assert same(list(again), found[start:])
    with pytest.raises(DataError, match=r"4 of 12 samples .* more than data\.training\.max_bad_share = 0\.3; one is"):
        list(folder(tmp_path / "damaged", (2, 5, 6, 9), 0.3).captioned_images(COUNT, 3))


def test_just_the_share_may_be_bad_and_no_search_is_endless(tmp_path: Path) -> None:
    assert len(folder(tmp_path, broken=(1, 4, 7), share=0.25).real_images(["a"] * 40, 0)) == 40
    with pytest.raises(DataError, match="12 of 12"):
        folder(tmp_path, broken=tuple(range(COUNT)), share=0.99).real_images(["a"], 0)
    for share in (1.0, -0.1):
        with pytest.raises(DataError, match=f"max_bad_share is {share}"):
            FileDataset(Memory(3), 8, max_bad_share=share)


class Memory:
    """Samples that hold no image but the first."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"sample {index}"

    def caption(self, index: int) -> str:
        return f"caption {index}"

    def image(self, index: int) -> bytes:
        return b"no image"


def test_the_order_is_a_permutation_of_seed_and_epoch_alone() -> None:
    reader = SampleReader(Memory(100), 2)
    orders = [reader.order(seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert reader.order(1, 1).tolist() == orders[3]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(DataError, match="image_size is 0"):
        SampleReader(Memory(3), 0)
    with pytest.raises(DataError, match="sample 3 of 3"):
        SampleReader(Memory(3), 2).read(3)
    with pytest.raises(BadSampleError, match="sample 1: cannot be decoded"):
        SampleReader(Memory(3), 2).read(1)


def test_prompts_are_the_captions_each_once_while_there_are_enough(tmp_path: Path) -> None:
    found = folder(tmp_path).prompts(2 * COUNT, 3)
    assert set(Counter(found).values()) == {2} and len(set(found[:COUNT])) == COUNT
    assert {category for _, category in found} == {""}


def test_the_worlds_images_show_what_their_captions_say() -> None:
    dataset = opened(SHAPES, 48)
    found = list(dataset.captioned_images(60, 3))
    images = torch.stack([item.image for item in found])
    prompts = [world.Prompt.from_text(number, item.caption) for number, item in enumerate(found)]
    assert images.shape == (60, 3, 48, 48) and float(images.min()) >= 0 and float(images.max()) <= 1
    assert world.check_images(images, prompts).float().mean() > 0.95
    assert world.check_images(images.roll(1, 0), prompts).float().mean() < 0.3
    assert {prompt.category for prompt in prompts} == set(world.SHARES)  # the world's mix
    for start in (0, 23, 60):
        assert same(list(dataset.captioned_images(60, 3, start)), found[start:])
    assert names(list(dataset.captioned_images(60, 4))) != names(found)


def test_a_dataset_of_ones_own_is_opened_by_its_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    folder(tmp_path / "data", broken=(3,))
    (tmp_path / "mine_greys.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    section = {"kind": "mine_greys:open_greys", "folder": str(tmp_path / "data"), "share": 0.1}
    dataset = opened(section)
    found = list(dataset.captioned_images(COUNT, 3))
    for image, caption in found:
        assert image.shape == (3, 8, 8)
        assert image.unique().mul(255).round().tolist() == [20.0 * int(caption.removeprefix("file "))]
    assert [row["name"] for row in dataset.skipped()] == ["3.png"]
    cases = {
        "nowhere:x": r"data\.training\.kind: nowhere:x cannot be imported",
        "mine_greys:nothing": "cannot be imported",
        "mine_greys:no_dataset": r"failed with TypeError.*'share'",
        "mine_greys:Greys": r"failed with TypeError",
    }
    for kind, message in cases.items():
        with pytest.raises(DataError, match=message):
            opened(section | {"kind": kind})
    del section["share"]
    with pytest.raises(DataError, match=r"gave a list; return a rank_e\.data\.dataset\.Dataset"):
        opened(section | {"kind": "mine_greys:no_dataset"})
    with pytest.raises(DataError, match=r"data\.training\.folder: .*absent does not exist"):
        opened(section | {"folder": str(tmp_path / "absent")})
    sys.modules.pop("mine_greys")


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [({"split": "test"}, 48, "split = 'test'"), ({}, 256, "48 pixels wide, the backbone's 256")],
)
def test_what_the_world_cannot_draw_is_named(change: dict[str, str], size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(SHAPES | change, size)
