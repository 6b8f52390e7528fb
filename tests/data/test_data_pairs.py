"""Pairs: the order, its shards and its resumption, bad samples, and images against independent resizing."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rank_e.data import BadSampleError, Batch, DataError, PairSource
from rank_e.data.images import UndecodableError, decode_image, square


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Memory:
    """Samples in memory that remember which images were asked for; `bad` ones hold no image."""

    def __init__(self, length: int, bad: set[int] | None = None) -> None:
        self.length = length
        self.bad = bad or set()
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"sample {index}"

    def caption(self, index: int) -> str:
        return f"caption {index}"

    def image(self, index: int) -> bytes:
        self.asked.append(index)
        return b"no image" if index in self.bad else encoded(Image.new("RGB", (2, 2), (index % 256, index // 256, 0)))


def indices(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.indices]


def take(source: PairSource, count: int, **options: object) -> list[Batch]:
    stream = source.batches(seed=3, **options)  # type: ignore[arg-type]
    return [next(stream) for _ in range(count)]


def test_order_is_a_permutation_of_seed_and_epoch_alone() -> None:
    source = PairSource(Memory(100), 2)
    orders = [source.order(seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert source.order(1, 1).tolist() == orders[3]
    assert source.order(None, 5).tolist() == list(range(100))


@pytest.mark.parametrize("world", [1, 2, 3, 7, 23])
def test_every_sample_is_in_exactly_one_shard_of_every_epoch(world: int) -> None:
    source = PairSource(Memory(23), 2)
    for epochs in (1, 2):
        shards = [indices(list(source.batches(4, 3, epochs=epochs, rank=r, world=world))) for r in range(world)]
        assert sorted(i for shard in shards for i in shard) == sorted(list(range(23)) * epochs)


def test_batches_of_all_readers_are_the_batch_of_one_reader() -> None:
    source = PairSource(Memory(24), 2)
    one = take(source, 2, batch_size=12)
    for world in (2, 3, 4):
        ranks = [take(source, 2, batch_size=12 // world, rank=r, world=world) for r in range(world)]
        for k in range(2):
            assert sorted(indices([batches[k] for batches in ranks])) == sorted(one[k].indices.tolist())


def test_the_stream_does_not_depend_on_the_batch_size_and_batches_are_full() -> None:
    source = PairSource(Memory(10), 2)
    assert indices(take(source, 12, batch_size=2)) == indices(take(source, 3, batch_size=8))
    assert [len(batch.captions) for batch in source.batches(4, 3, epochs=1)] == [4, 4, 2]
    expected = source.order(3, 0).tolist() + source.order(3, 1).tolist()
    assert indices(list(source.batches(4, 3, epochs=2))) == expected


def test_images_captions_and_indices_belong_together() -> None:
    batch = take(PairSource(Memory(300), 2), 1, batch_size=300)[0]
    assert batch.images.shape == (300, 3, 2, 2) and batch.images.dtype == torch.uint8
    assert batch.captions == [f"caption {int(i)}" for i in batch.indices]
    assert (batch.images[:, 0, 0, 0].long() + 256 * batch.images[:, 1, 0, 0].long()).equal(batch.indices)


@pytest.mark.parametrize("workers", [0, 3])
def test_going_on_at_any_batch_gives_the_same_batches_and_reads_nothing_before_them(workers: int) -> None:
    whole = take(PairSource(Memory(30, bad={4, 5, 17}), 2, 0.5), 20, batch_size=4, rank=1, world=2)
    for k in range(19):
        memory = Memory(30, bad={4, 5, 17})
        start = whole[k].next_start
        again = take(PairSource(memory, 2, 0.5), 1, batch_size=4, rank=1, world=2, workers=workers, start=start)[0]
        assert again.indices.equal(whole[k + 1].indices) and again.next_start == whole[k + 1].next_start
        assert again.images.equal(whole[k + 1].images) and again.captions == whole[k + 1].captions
        assert len(memory.asked) <= 4 + 3 + 4 * workers + 1  # a batch, the bad ones, what was decoded ahead


def test_bad_samples_are_skipped_named_and_counted_once() -> None:
    source = PairSource(Memory(200, bad={7, 150}), 2)
    report = source.new_report()
    seen = indices(list(source.batches(16, 3, epochs=3, report=report)))
    assert sorted(seen) == sorted(3 * [i for i in range(200) if i not in (7, 150)])
    assert [(row.index, row.name) for row in report.rows()] == [(7, "sample 7"), (150, "sample 150")]
    assert report.rows()[0].reason == "cannot be decoded (no JPEG, PNG or WebP image)"


def test_more_bad_samples_than_the_share_stop_the_run_and_just_the_share_does_not() -> None:
    assert len(list(PairSource(Memory(200, bad={7, 150}), 2, 0.01).batches(1, 3, epochs=1))) == 198
    with pytest.raises(
        DataError, match=r"3 of 200 samples .* data\.max_bad_share = 0\.01; one is sample 7, which cannot"
    ):
        list(PairSource(Memory(200, bad={7, 150, 9}), 2, 0.01).batches(1, 3, epochs=1))
    assert len(list(PairSource(Memory(100, bad=set(range(29))), 2, 0.29).batches(1, 3, epochs=1))) == 71
    with pytest.raises(DataError, match="5 of 5"):  # no endless search for a good one
        list(PairSource(Memory(5, bad=set(range(5))), 2, 0.99).batches(2, 3))


def test_a_report_goes_on_from_its_state_through_json() -> None:
    source = PairSource(Memory(200, bad={7, 150, 9}), 2)
    report = source.new_report()
    stream = source.batches(1, 3, report=report)
    while len(report) < 2:
        batch = next(stream)
    again = source.new_report()
    again.load_state(json.loads(json.dumps(report.state())))
    assert again.rows() == report.rows() and len(again) == 2
    with pytest.raises(DataError, match="3 of 200"):
        list(source.batches(1, 3, start=batch.next_start, epochs=1, report=again))
    with pytest.raises(DataError, match="is of 200 samples, the data holds 199"):
        PairSource(Memory(199), 2).new_report().load_state(report.state())


def test_threads_change_nothing() -> None:
    source = PairSource(Memory(40, bad={3, 30}), 2, 0.5)
    reports = [source.new_report(), source.new_report()]
    plain, ahead = (
        list(source.batches(7, 5, epochs=2, workers=workers, report=report))
        for workers, report in zip((0, 4), reports, strict=True)
    )
    assert len(plain) == len(ahead) and reports[0].state() == reports[1].state()
    for a, b in zip(plain, ahead, strict=True):
        assert a.images.equal(b.images) and a.indices.equal(b.indices) and a.next_start == b.next_start


def test_wrong_arguments_are_named_before_anything_is_read() -> None:
    source = PairSource(Memory(3), 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1, "start": -1}, "start is -1"),
        ({"batch_size": 1, "rank": 2, "world": 2}, "reader 2 of 2"),
        ({"batch_size": 1, "rank": 0, "world": 4}, "3 samples for 4 readers"),
    ]
    for options, message in cases:
        with pytest.raises(DataError, match=message):
            source.batches(seed=0, **options)
    for size, share, message in ((0, 0.1, "image_size is 0"), (2, 1.0, "max_bad_share is 1"), (2, -0.1, "-0.1")):
        with pytest.raises(DataError, match=message):
            PairSource(Memory(3), size, share)
    with pytest.raises(DataError, match="sample 3 of 3"):
        source.read(3)
    with pytest.raises(BadSampleError, match="sample 1: cannot be decoded"):
        PairSource(Memory(3, bad={1}), 2).read(1)


# ---------------------------------------------------------------------------------------------- images


def torch_resize(pixels: np.ndarray, size: int) -> Tensor:
    """An independent antialiased bicubic resize of float [H, W, 3] (torch's, Keys' a = -0.5 as in Pillow)."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(planes, (size, size), mode="bicubic", antialias=True)[0].clamp(0, 255)


@pytest.mark.parametrize(("height", "width", "size"), [(90, 61, 24), (40, 75, 33), (33, 33, 48)])
def test_square_is_the_centre_crop_resized_with_antialiasing(height: int, width: int, size: int) -> None:
    pixels = 64 + noise(1, height, width, 3) // 2  # Pillow clips overshoot between its two directions
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    expected = torch_resize(pixels[top : top + side, left : left + side], size)
    result = square(Image.fromarray(pixels), size)
    assert result.shape == (3, size, size) and result.dtype == torch.uint8
    assert (result.float() - expected).abs().max() <= 1.3  # Pillow rounds after each direction


def test_a_image_of_the_right_size_is_only_cropped() -> None:
    pixels = noise(2, 16, 21, 3)
    assert square(Image.fromarray(pixels), 16).permute(1, 2, 0).numpy().tolist() == pixels[:, 2:18].tolist()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, mode) for kind in ("png", "jpeg", "webp") for mode in ("RGB", "L")), ("png", "P"), ("jpeg", "CMYK")],
)
def test_formats_and_colour_modes_become_rgb(kind: str, mode: str) -> None:
    image = Image.fromarray(noise(3, 20, 30, 3)).convert(mode)
    data = encoded(image, kind)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(stored.convert("RGB"))
    decoded = decode_image(data)
    assert decoded.mode == "RGB" and np.array_equal(np.asarray(decoded), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_by_their_exif_tag(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(4, 6, 10, 3)), "png", exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(np.asarray(decode_image(data)), expected)


def test_transparency_lies_over_white() -> None:
    pixels = noise(5, 8, 8, 4)
    alpha = pixels[..., 3:].astype(float) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(decode_image(encoded(Image.fromarray(pixels)))) - expected).max() <= 1
    palette = Image.fromarray(noise(6, 8, 8) % 4, "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    decoded = np.asarray(decode_image(encoded(palette, transparency=2)))
    assert (decoded[np.asarray(palette) == 2] == 255).all() and (
        decoded[np.asarray(palette) == 1] == [40, 50, 60]
    ).all()


def test_what_is_no_whole_image_is_refused() -> None:
    image = Image.fromarray(noise(7, 64, 64, 3))
    cases = {kind: encoded(image, kind) for kind in ("png", "jpeg", "webp")}
    for data in cases.values():
        for length in (0, 3, 20, len(data) // 2):
            with pytest.raises(UndecodableError, match="cannot be decoded") as caught:
                decode_image(data[:length])
            assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    for data in (encoded(image, "gif"), encoded(image, "bmp"), b"<html>not found</html>"):
        with pytest.raises(UndecodableError, match="no JPEG, PNG or WebP image"):
            decode_image(data)
    with pytest.raises(UndecodableError, match="not 8 bits a channel"):
        decode_image(encoded(Image.fromarray(noise(8, 4, 4).astype(np.uint16) * 200)))


def test_damaged_bytes_never_raise_anything_else() -> None:
    image = Image.fromarray(noise(9, 24, 24, 3))
    rng = np.random.default_rng(10)
    for kind in ("png", "jpeg", "webp"):
        whole = np.frombuffer(encoded(image, kind), np.uint8)
        for _ in range(150):
            data = whole.copy()
            data[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            try:
                assert decode_image(data.tobytes()).mode == "RGB"
            except UndecodableError as error:
                assert "\n" not in str(error)
