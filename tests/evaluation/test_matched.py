"""Matched distances: against replicated rows, other libraries and plain distances; the same after a kill."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from rank_e.config.evaluation import MatchedParams
from rank_e.errors import RankEError
from rank_e.evaluation.base import EvaluationError, Images
from rank_e.evaluation.captions import CaptionSums, load_captions, save_captions
from rank_e.evaluation.frechet import Moments, frechet_distance
from rank_e.evaluation.matched import accepted_images, matched_distance, weighted_moments
from rank_e.evaluation.metric import Metric
from rank_e.evaluation.reference import MATCHED, Statistics, load_references
from rank_e.evaluation.stream import ImageBatch, ImageStream, evaluate_stream
from rank_e.evaluation.suite import Suite
from rank_e.evaluation.summary import summarise
from rank_e.seeds import generator

DIM = 4
MATCHING = MatchedParams(score="right", distances=["fd"], least=4)


def rows(count: int, *key: object, places: int = 0) -> Tensor:
    shape = (count, places, DIM) if places else (count, DIM)
    mix = torch.randn(DIM, DIM, generator=generator(0, "mix"))
    return torch.randn(shape, generator=generator(0, *key)) @ mix + 3


def parts(features: Tensor, size: int = 7) -> Iterable[Tensor]:
    return features.split(size)


@pytest.mark.parametrize("places", [0, 3])
def test_weighted_moments_are_those_of_rows_repeated_as_often_as_they_weigh(places: int) -> None:
    features = rows(25, "weighted", places=places)
    times = torch.randint(4, (25, 2), generator=generator(0, "times"))
    for column, moments in enumerate(weighted_moments(parts(features), times.double())):
        repeated = np.repeat(features.double().numpy(), times[:, column].numpy(), axis=0).reshape(-1, DIM)
        row_weights = np.repeat(times[:, column].numpy(), max(places, 1)).astype(float)
        shares = row_weights / row_weights.sum()
        np.testing.assert_allclose(moments.mean.numpy(), repeated.mean(0), rtol=1e-12)
        expected = np.cov(repeated.T, bias=True) / (1 - (shares**2).sum())
        np.testing.assert_allclose(moments.cov.numpy(), expected, rtol=1e-10)
        np.testing.assert_allclose(
            moments.cov.numpy(), np.cov(features.reshape(-1, DIM).double().T, aweights=row_weights)
        )
        assert moments.n == int((times[:, column] > 0).sum()) * max(places, 1)


def test_the_weighted_covariance_is_right_on_average() -> None:
    weights = torch.tensor([5.0, 1, 1, 1, 0.5]).double()[:, None]
    many = torch.randn(4000, 5, 1, generator=generator(0, "many"))
    mean = torch.stack([weighted_moments([few], weights)[0].cov for few in many]).mean()
    assert mean.item() == pytest.approx(1, abs=0.05)  # with N - 1 = 4 of 5 it would be 0.8


def test_all_accepted_and_balanced_it_is_the_plain_distance_extrapolated() -> None:
    captions = [f"caption {index % 8}" for index in range(80)]
    features, reference = rows(80, "sampled"), Moments.of(rows(200, "real") + 0.3)
    found = accepted_images(captions, torch.ones(80, dtype=torch.bool), 4, captions)
    assert found is not None and (found.images, len(found.captions)) == (80, 8)
    whole, first, second = (frechet_distance(reference, m) for m in weighted_moments(parts(features), found.weights))
    assert whole == pytest.approx(frechet_distance(reference, Moments.of(features)), rel=1e-12)
    # Of each caption's ten images, which come eight apart, every other one.
    half = torch.arange(80) // 8 % 2
    for value, side in ((first, 0), (second, 1)):
        assert value == pytest.approx(frechet_distance(reference, Moments.of(features[half == side])), rel=1e-12)
    value = matched_distance(parts(features), found.weights, reference)
    assert value == pytest.approx(2 * whole - (first + second) / 2, rel=1e-12)


def brute_force(captions: Sequence[str], right: np.ndarray, x: np.ndarray, real: np.ndarray, least: int) -> float:
    """The definition again: numpy and scipy, one caption at a time, `real` already of the kept captions."""

    def moments(places: dict[str, list[int]]) -> tuple[np.ndarray, np.ndarray]:
        listed = {c: captions.count(c) for c in places}
        pairs = [(x[i], listed[c] / len(own)) for c, own in places.items() for i in own]
        w = np.array([weight for _, weight in pairs])
        w = w / w.sum()
        y = np.stack([row for row, _ in pairs])
        mean = (w[:, None] * y).sum(0)
        cov = sum(weight * np.outer(row - mean, row - mean) for row, weight in zip(y, w, strict=True))
        return mean, cov / (1 - (w**2).sum())

    def distance(places: dict[str, list[int]]) -> float:
        (m, a), n, b = moments(places), real.mean(0), np.cov(real.T)
        return float(((m - n) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real))

    places = {c: [i for i, other in enumerate(captions) if other == c and right[i]] for c in set(captions)}
    kept = {c: own for c, own in places.items() if len(own) >= least}
    halves = [{c: own[side::2] for c, own in kept.items()} for side in (0, 1)]
    return 2 * distance(kept) - sum(distance(half) for half in halves) / 2


def unbalanced(count: int = 150) -> tuple[list[str], Tensor]:
    """Captions of other frequencies, of which one is right only three times."""
    numbers = torch.randint(10, (count,), generator=generator(0, "captions")).tolist()
    captions = [f"caption {min(number, 6)}" for number in numbers]
    right = torch.rand(count, generator=generator(0, "right")) < 0.75
    rare = torch.tensor([caption == "caption 2" for caption in captions])
    right[rare] = torch.arange(int(rare.sum())) < 3
    return captions, right


def test_it_is_what_the_definition_says() -> None:
    captions, right = unbalanced()
    features, real = rows(150, "sampled"), rows(90, "real") + 0.2
    found = accepted_images(captions, right, 4, captions)
    assert found is not None and found.captions == [f"caption {i}" for i in (0, 1, 3, 4, 5, 6)]
    assert found.images == int((found.weights[:, 0] > 0).sum()) < int(right.sum())
    for caption in found.captions:
        own = torch.tensor([other == caption for other in captions])
        torch.testing.assert_close(found.weights[own].sum(0), torch.full((3,), float(own.sum())).double())
    value = matched_distance(parts(features), found.weights, Moments.of(real))
    expected = brute_force(captions, right.numpy(), features.double().numpy(), real.double().numpy(), 4)
    assert value == pytest.approx(expected, rel=1e-6)


def test_extrapolated_it_hardly_depends_on_how_many_are_accepted() -> None:
    reference = Moments.of(rows(20000, "reference"))
    values: dict[int, list[float]] = {100: [], 400: []}
    plain: dict[int, list[float]] = {100: [], 400: []}
    for count in values:
        for trial in range(30):
            features, captions = rows(count, "trial", trial), [str(index % 10) for index in range(count)]
            found = accepted_images(captions, torch.ones(count, dtype=torch.bool), 4, captions)
            assert found is not None
            values[count].append(matched_distance([features], found.weights, reference))
            plain[count].append(frechet_distance(reference, Moments.of(features)))
    gap, before = (abs(np.mean(x[100]) - np.mean(x[400])) for x in (values, plain))
    assert gap < before / 3


def test_too_few_images_or_captions_give_nothing_and_a_half_is_never_empty() -> None:
    captions = [f"caption {index % 2}" for index in range(64)]
    all_right = torch.ones(64, dtype=torch.bool)
    assert accepted_images(captions, all_right, 2, captions) is not None
    assert accepted_images(captions[:63], all_right[:63], 2, captions) is None
    assert accepted_images(["caption 0"] * 64, all_right, 2, captions) is None
    assert accepted_images(captions, all_right, 33, captions) is None
    assert accepted_images(captions, all_right, 2, ["caption 0"]) is None  # the other has no real image
    assert accepted_images(captions, ~all_right, 2, captions) is None
    with pytest.raises(RankEError, match="least 1"):
        accepted_images(captions, all_right, 1, captions)


class Known:
    """Features and a verdict that an image's first bytes decide, one row or three an image."""

    metric, sha256 = Metric("FD", "lower", "distance"), "0" * 64

    def __init__(self, protocol: str, shift: float = 0.0, places: int = 0) -> None:
        self.protocol, self.shift, self.places = protocol, shift, places

    def __call__(self, images: Images, prompts: Sequence[str] | None = None) -> Tensor:
        numbers = [int(image[0, 0, 0]) for image in images]
        if prompts is not None:
            return torch.tensor([float(number % 4 != 0) for number in numbers])
        return torch.cat([rows(1, "image", number, places=self.places) for number in numbers]) + self.shift


def image(number: int) -> Tensor:
    return torch.full((3, 2, 2), number, dtype=torch.uint8)


def batch_of(start: int, stop: int) -> ImageBatch:
    return ImageBatch([image(i) for i in range(start, stop)], [f"caption {i * i % 7}" for i in range(start, stop)])


def gathered(folder: Path, features: Known, count: int, killed: int = 0) -> ImageStream:
    """A finished stream of `count` images; with `killed`, opened again after so many."""
    for last in (killed, count) if killed else (count,):
        stream = ImageStream(folder, "", features={"fd": features}, scores={"right": Known("right")}, every=16)
        for start in range(stream.done, last, 8):
            stream.add(*batch_of(start, min(start + 8, last))[:2])
    stream.finish()
    return stream


@pytest.mark.parametrize("places", [0, 3])
def test_a_stream_is_matched_to_the_real_images_of_the_kept_captions(tmp_path: Path, places: int) -> None:
    network = Known("features", places=places)
    real = gathered(tmp_path / "real", network, 140)
    prompts = [f"caption {i * i % 7}" for i in range(120)]
    captions = CaptionSums.of(real, "fd", prompts, 4)
    statistics = Statistics.of(real, "fd", "data")
    with_captions = Statistics(statistics.moments, statistics.provenance, captions)
    stream = gathered(tmp_path / "sampled", Known("features", 0.2, places), 120)
    found = summarise(stream, {"fd": with_captions}, seed=0, resamples=4, matched=MATCHING)
    assert list(found) == ["fd", "fd_matched", "right"] and found["fd_matched"].keys() == {
        "value",
        "images",
        "captions",
    }
    assert (found["fd"]["images"], found["fd"]["real"]) == (120, 140)
    right = np.array([i % 4 != 0 for i in range(120)])
    kept = {c for c in prompts if sum(r for r, other in zip(right, prompts, strict=True) if other == c) >= 4}
    assert found["fd_matched"]["captions"] == len(kept)
    assert found["fd_matched"]["images"] == sum(r and c in kept for r, c in zip(right, prompts, strict=True))
    chosen = [i for i in range(140) if f"caption {i * i % 7}" in kept]
    features = torch.cat([part for _, part in real.feature_rows("fd")])
    by_hand = Moments.of(features[chosen].flatten(0, -2))
    torch.testing.assert_close(captions.moments(kept).cov, by_hand.cov)
    assert captions.moments(kept).n == by_hand.n
    if not places:
        sampled = torch.cat([part for _, part in stream.feature_rows("fd")]).double().numpy()
        expected = brute_force(prompts, right, sampled, features[chosen].double().numpy(), 4)
        assert found["fd_matched"]["value"] == pytest.approx(expected, rel=1e-6)
    # Derived from what the stream keeps: a killed one that went on gives the same bytes.
    again = gathered(tmp_path / "killed", Known("features", 0.2, places), 120, killed=48)
    assert summarise(again, {"fd": with_captions}, seed=0, resamples=4, matched=MATCHING) == found


def test_too_few_accepted_images_leave_the_key_out(tmp_path: Path) -> None:
    real = gathered(tmp_path / "real", Known("features"), 140)
    statistics = Statistics.of(real, "fd", "data")
    captions = CaptionSums.of(real, "fd", [f"caption {i * i % 7}" for i in range(32)], 4)
    references = {"fd": Statistics(statistics.moments, statistics.provenance, captions)}
    stream = gathered(tmp_path / "tiny", Known("features"), 32)
    assert summarise(stream, references, seed=0, resamples=0, matched=MATCHING).keys() == {"fd", "right"}
    with pytest.raises(EvaluationError, match="fd: the reference has no sums by caption"):
        summarise(stream, {"fd": statistics}, seed=0, resamples=0, matched=MATCHING)


def test_a_score_that_is_no_verdict_is_refused(tmp_path: Path) -> None:
    class Half(Known):
        def __call__(self, images: Images, prompts: Sequence[str] | None = None) -> Tensor:
            return torch.full((len(images),), 0.5)

    stream = ImageStream(tmp_path, "", scores={"right": Half("half")})
    evaluate_stream(stream, batch_of, 8, 8)
    matched = MatchedParams(score="right", distances=["fd"], least=4)
    with pytest.raises(EvaluationError, match=r"evaluation\.matched\.score = right: a value of 0\.5"):
        summarise(stream, {}, seed=0, resamples=0, matched=matched)


def test_sums_by_caption_are_kept_beside_the_statistics(tmp_path: Path) -> None:
    real = gathered(tmp_path / "real", Known("features"), 140)
    prompts = [f"caption {i * i % 7}" for i in range(120)]
    with pytest.raises(EvaluationError, match=r"none of the 140 real images has the caption 'a cube'"):
        CaptionSums.of(real, "fd", [*prompts, *["a cube"] * 4], 4)
    sums = CaptionSums.of(real, "fd", [*prompts, *["a cube"] * 3], 4)  # three can never be four right ones
    assert sums.captions == sorted({*prompts})
    suite = Suite({"fd": Known("features")}, {"right": Known("right")}, MATCHING)
    Statistics.of(real, "fd", "data").save(tmp_path / "fd.safetensors")
    assert load_references(tmp_path, suite.features)["fd"].captions is None
    with pytest.raises(EvaluationError, match=r"matched\.safetensors does not exist"):
        load_references(tmp_path, suite.features, suite.matched_distances)
    save_captions(tmp_path / MATCHED, {"fd": sums})
    found = load_references(tmp_path, suite.features, suite.matched_distances)["fd"].captions
    assert found is not None and found.captions == sums.captions
    torch.testing.assert_close(found.moments(["caption 1"]).cov, sums.moments(["caption 1"]).cov, rtol=0, atol=0)
    with pytest.raises(EvaluationError, match="lacks one of other"):
        load_captions(tmp_path / MATCHED, ["other"])
    (tmp_path / MATCHED).write_bytes((tmp_path / MATCHED).read_bytes()[:50])
    with pytest.raises(EvaluationError, match="is damaged"):
        load_captions(tmp_path / MATCHED, ["fd"])


def test_what_is_matched_is_described_after_the_distances() -> None:
    suite = Suite({"fd": Known("a"), "fd_mid": Known("b")}, {"right": Known("right")}, MATCHING, "fd")
    described = [(row["key"], row["group"], row["better"]) for row in suite.described()]
    assert described == [
        ("fd", "distance", "lower"),
        ("fd_mid", "distance", "lower"),
        ("fd_matched", "distance", "lower"),
        ("right", "score", "lower"),
        ("diversity", "score", "nearer"),
    ]
