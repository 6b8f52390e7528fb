"""Diversity within a prompt: against all pairs by loops, whatever the parts and how many images are held."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rank_e.evaluation.diversity import diversity
from rank_e.evaluation.metric import Metric
from rank_e.evaluation.stream import ImageStream
from rank_e.evaluation.summary import summarise
from rank_e.seeds import generator

CAPTIONS = ["a", "b", "a", "alone", "c", "b", "a", "b", "c", "a"]


def by_loops(captions: list[str], features: np.ndarray) -> float:
    flat = features.reshape(len(features), -1, features.shape[-1]).astype(float).mean(1)
    total = count = 0.0
    for caption in set(captions):
        own = [row for row, other in zip(flat, captions, strict=True) if other == caption]
        if len(own) > 1:
            total += len(own) * np.mean([np.sqrt(((a - b) ** 2).sum()) for a, b in combinations(own, 2)])
            count += len(own)
    return total / count


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
@pytest.mark.parametrize(("size", "held"), [(10, 4096), (3, 4096), (4, 5), (1, 1)])
def test_it_is_the_mean_over_pairs_of_one_caption(shape: tuple[int, ...], size: int, held: int) -> None:
    features = torch.randn(10, *shape, generator=generator(0, "rows"))
    passes = 0

    def again() -> Iterator[Tensor]:
        nonlocal passes
        passes += 1
        yield from features.split(size)

    expected = by_loops(CAPTIONS, features.numpy())
    assert diversity(CAPTIONS, again, held) == pytest.approx(expected, rel=1e-6)
    assert passes == {4096: 1, 5: 2, 1: 3}[held]  # a and then b with c; each alone


def test_the_same_image_again_has_none_and_single_images_say_nothing() -> None:
    row = torch.ones(1, 4)
    assert diversity(["a", "a", "b"], lambda: [row.repeat(3, 1)]) == 0
    assert diversity(["a", "b", "c"], lambda: [row.repeat(3, 1)]) is None


class Rows:
    """The next rows of a list, and no verdict."""

    metric, protocol, sha256 = Metric("FD", "lower", "distance"), "rows", "0" * 64

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.place = rows, 0

    def __call__(self, images: object) -> Tensor:
        self.place += len(images)  # type: ignore[arg-type]
        return self.rows[self.place - len(images) : self.place]  # type: ignore[arg-type]


def test_a_stream_has_it_where_a_prompt_has_two_images(tmp_path: Path) -> None:
    rows = torch.randn(10, 5, generator=generator(0, "rows"))
    grey = torch.zeros(3, 2, 2, dtype=torch.uint8)
    for name, captions in (("pairs", CAPTIONS), ("single", [str(index) for index in range(10)])):
        network = Rows(rows)
        stream = ImageStream(tmp_path / name, "", features={"fd": network}, every=4)
        for start in (0, 4, 8):
            stream.add([grey] * len(captions[start : start + 4]), captions[start : start + 4])
        stream.finish()
        stream.features = {}  # no distance here
        found = summarise(stream, {}, seed=0, resamples=0, diversity="fd")
        expected = {"diversity": {"value": pytest.approx(by_loops(captions, rows.numpy()))}} if name == "pairs" else {}
        assert found == expected
