"""Streams, references and intervals: against all rows at once, row bootstraps and killed runs."""

import json
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.evaluation import stream as stream_module
from rank_e.evaluation.base import EvaluationError, Images
from rank_e.evaluation.bootstrap import bootstrap_interval, poisson_counts, resampling_weights
from rank_e.evaluation.estimates import ShardedFrechet, ShardSums, frechet_estimate, mean_estimates
from rank_e.evaluation.frechet import Moments, frechet_distance
from rank_e.evaluation.hpsv2 import STYLES, read_benchmark
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.stream import ImageBatch, ImageStream, evaluate_stream
from rank_e.evaluation.summary import summarise, without_categories, without_intervals
from rank_e.evaluation.tokens import token_histogram
from rank_e.seeds import generator

DIM = 5
STYLE = ("anime", "photo", "paintings")


class Killed(BaseException):
    """What stops a run here; like a signal, no handler of errors sees it."""


class Moved:
    """Features: a fixed random projection of the first pixels, so that every image has its own row."""

    protocol, sha256 = "projection", "0" * 64

    def __init__(self) -> None:
        self.weights = torch.randn(48, DIM, generator=generator(0, "projection"))
        self.alive: list[weakref.ref[Tensor]] = []

    def __call__(self, images: Images) -> Tensor:
        rows = torch.stack([image.flatten()[:48].float() / 255 for image in images]) @ self.weights
        self.alive.append(weakref.ref(rows))
        return rows


class Red:
    """Score: mean red plus the prompt's length."""

    protocol, sha256 = "red", "1" * 64

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        return torch.stack([p[0].float().mean() / 255 + len(t) for p, t in zip(images, prompts, strict=True)])


def image_of(index: int) -> Tensor:
    return torch.randint(256, (3, 4, 4), generator=generator(1, "image", index), dtype=torch.uint8)


def batch_of(start: int, stop: int) -> ImageBatch:
    rows = range(start, stop)
    return ImageBatch([image_of(i) for i in rows], [f"prompt {i % 7}" for i in rows], [STYLE[i % 3] for i in rows])


def open_stream(folder: Path, key: str = "key", every: int = 10) -> ImageStream:
    return ImageStream(folder, key, features={"fd": Moved()}, scores={"red": Red()}, every=every)


def whole(total: int) -> tuple[Tensor, Tensor]:
    images, prompts, *_ = batch_of(0, total)
    return Moved()(images), Red()(images, prompts)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def features_only(folder: Path, rows: Tensor, every: int = 1000) -> ImageStream:
    """A stream whose features are `rows` [N, D]."""

    class Rows:
        protocol, sha256 = "rows", "2" * 64
        place = 0

        def __call__(self, images: Images) -> Tensor:
            self.place += len(images)
            return rows[self.place - len(images) : self.place]

    stream = ImageStream(folder, "rows", features={"fd": Rows()}, every=every)
    evaluate_stream(stream, lambda a, b: ImageBatch([rows[0]] * (b - a), [""] * (b - a)), len(rows), every)
    return stream


@pytest.mark.parametrize(("batch", "every"), [(4, 10), (1, 1), (7, 100)])
def test_a_stream_gives_the_moments_and_means_of_all_images_at_once(tmp_path: Path, batch: int, every: int) -> None:
    stream = open_stream(tmp_path, every=every)
    evaluate_stream(stream, batch_of, 50, batch)
    rows, scores = whole(50)
    expected = Moments.of(rows)
    for shards in (1, 7):
        moments = ShardSums.of(stream, "fd", shards).moments()
        assert moments.n == 50
        torch.testing.assert_close(moments.mean, expected.mean)
        torch.testing.assert_close(moments.cov, expected.cov)
    # The last bits of a matrix product depend on the batch.
    torch.testing.assert_close(torch.cat([part for _, part in stream.feature_rows("fd")]), rows, rtol=1e-5, atol=1e-5)
    means = mean_estimates(stream, "red", seed=0, resamples=0)
    for place, style in enumerate(STYLE):
        assert means[style].value == pytest.approx(scores[place::3].double().mean().item())
        assert means[style].low is None
    assert means[""].value == pytest.approx(scores.double().mean().item())  # 50 images: not the styles' mean


@pytest.mark.parametrize("killed_at", [0, 12, 13, 24, 49])
def test_a_killed_stream_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, killed_at: int) -> None:
    evaluate_stream(open_stream(tmp_path / "whole"), batch_of, 50, 4)
    asked = []

    def dying(start: int, stop: int) -> ImageBatch:
        if stop > killed_at:
            raise Killed
        return batch_of(start, stop)

    def watched(start: int, stop: int) -> ImageBatch:
        asked.append(start)
        return batch_of(start, stop)

    with pytest.raises(Killed):
        evaluate_stream(open_stream(tmp_path / "killed"), dying, 50, 4)
    again = open_stream(tmp_path / "killed")
    assert again.done == killed_at // 12 * 12  # parts of three batches of four, the first to reach ten
    evaluate_stream(again, watched, 50, 4)
    assert asked[0] == killed_at // 12 * 12
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    finished = open_stream(tmp_path / "killed")
    evaluate_stream(finished, dying, 50, 4)  # nothing is left to do
    assert finished.done == 50


def test_a_kill_while_a_part_is_written_leaves_whole_parts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_stream(open_stream(tmp_path / "whole"), batch_of, 40, 4)
    stream = open_stream(tmp_path / "killed")
    real = stream_module.save_tensors
    calls = []

    def dying(tensors: dict[str, Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise Killed
        real(tensors, path)

    monkeypatch.setattr(stream_module, "save_tensors", dying)
    with pytest.raises(Killed):
        evaluate_stream(stream, batch_of, 40, 4)
    (tmp_path / "killed" / ".part-000000024.tmp-new").mkdir()  # what kill -9 leaves, whose clean-up never ran
    (tmp_path / "killed" / ".part-000000024.tmp-new" / "rows.parquet").write_bytes(b"half")
    again = open_stream(tmp_path / "killed")
    assert again.done == 24
    evaluate_stream(again, batch_of, 40, 4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_memory_does_not_grow_with_images(tmp_path: Path) -> None:
    network, most = Moved(), 0
    images: list[weakref.ref[Tensor]] = []
    stream = ImageStream(tmp_path, "key", features={"fd": network}, scores={"red": Red()}, every=16)

    def counting(start: int, stop: int) -> ImageBatch:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in (*images, *network.alive)))
        batch = batch_of(start, stop)
        images.extend(weakref.ref(image) for image in batch[0])
        return batch

    evaluate_stream(stream, counting, 400, 8)
    assert len(images) == 400 and 0 < most <= 2 * 8 + 2  # the batches of one part, not of the run
    assert not stream._columns and not any(stream._features.values())


def test_totals_and_further_columns_are_kept(tmp_path: Path) -> None:
    tokens = torch.randint(16, (40, 4), generator=generator(0, "tokens"))
    for last in (24, 40):  # killed after 24
        stream = open_stream(tmp_path)
        for start in range(stream.done, last, 4):
            images, prompts, styles, *_ = batch_of(start, start + 4)
            histogram = token_histogram(tokens[start : start + 4], 16)
            named = [f"{i}" for i in range(start, start + 4)]
            stream.add(images, prompts, styles, values={"name": named}, totals={"tokens": histogram})
    stream.finish()
    assert torch.equal(stream.total("tokens"), token_histogram(tokens, 16))
    names = [name for _, part in stream.rows("name") for name in part["name"]]
    assert names == [f"{i}" for i in range(40)]
    assert stream.columns() == ["index", "category", "prompt", "name", "red"]
    with pytest.raises(EvaluationError, match="no column blue"):
        next(stream.rows("blue"))
    with pytest.raises(EvaluationError, match="totals/blue"):
        stream.total("blue")


def test_another_key_network_or_batch_is_refused(tmp_path: Path) -> None:
    evaluate_stream(open_stream(tmp_path / "a"), batch_of, 22, 4)
    with pytest.raises(EvaluationError, match="another key"):
        open_stream(tmp_path / "a", key="other")
    with pytest.raises(EvaluationError, match="another features, scores"):
        ImageStream(tmp_path / "a", "key")
    with pytest.raises(EvaluationError, match="22 images of 20"):
        evaluate_stream(open_stream(tmp_path / "a"), batch_of, 20, 4)
    with pytest.raises(EvaluationError, match="other batches"):
        evaluate_stream(open_stream(tmp_path / "a"), batch_of, 30, 4)
    stream = open_stream(tmp_path / "b")
    with pytest.raises(EvaluationError, match="4 images but category 3"):
        stream.add(*batch_of(0, 4)[:2], ["anime"] * 3)
    assert stream.done == 0
    with pytest.raises(EvaluationError, match="holds no images"):
        summarise(ImageStream(tmp_path / "c", "key", scores={"red": Red()}), {}, seed=0, resamples=0)


def test_sharded_distance_is_that_of_repeated_rows(tmp_path: Path) -> None:
    rows = torch.randn(60, DIM, generator=generator(0, "rows")) @ torch.randn(DIM, DIM, generator=generator(0, "mix"))
    reference = Moments.of(1 + torch.randn(100, DIM, generator=generator(0, "reference")))
    stream = features_only(tmp_path, rows.float(), every=13)
    weights = resampling_weights(6, 4, seed=1)
    sharded = ShardedFrechet(reference, ShardSums.of(stream, "fd", 6))
    for weight in weights:
        repeated = torch.cat([rows[i::6].repeat(int(weight[i]), 1) for i in range(6)])
        expected = frechet_distance(reference, Moments.of(repeated.float()))
        assert sharded(weight) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(EvaluationError, match="60 images for 31 shards"):
        ShardSums.of(stream, "fd", 31)


def test_sharded_interval_has_the_width_of_a_bootstrap_of_rows_and_covers(tmp_path: Path) -> None:
    reference = Moments(torch.zeros(3).double(), torch.eye(3).double(), 10**6)
    ratios, covered = [], 0
    for trial in range(30):
        rows = 1 + 1.5 * torch.randn(800, 3, generator=generator(trial, "rows"))
        stream = features_only(tmp_path / str(trial), rows)
        estimate = frechet_estimate(stream, "fd", reference, seed=0, resamples=100)
        assert estimate.low is not None and estimate.high is not None
        assert estimate.low < estimate.value < estimate.high

        def resampled(weights: Tensor, rows: Tensor = rows) -> float:
            return frechet_distance(reference, Moments.of(rows.repeat_interleave(weights.long(), 0)))

        low, high = bootstrap_interval(resampled, 100, 0, rows=800, estimate=estimate.value)
        ratios.append((estimate.high - estimate.low) / (high - low))
        covered += estimate.low <= 3 + 3 * 0.25 <= estimate.high
    assert 0.85 < sum(ratios) / len(ratios) < 1.1
    assert covered >= 25  # of 30 at a level of 95 %


def test_poisson_counts_depend_on_the_image_alone() -> None:
    counts = poisson_counts(0, 1000, 50, seed=3)
    assert counts.shape == (1000, 50) and counts.mean() == pytest.approx(1, abs=0.02)
    assert counts.var() == pytest.approx(1, abs=0.05)
    for start, count in ((0, 1), (255, 2), (300, 700), (511, 1)):
        assert torch.equal(poisson_counts(start, count, 50, seed=3), counts[start : start + count])
    assert not torch.equal(poisson_counts(0, 10, 50, seed=4), counts[:10])


def test_poisson_interval_agrees_with_a_bootstrap_of_rows(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, every=64)
    evaluate_stream(stream, lambda a, b: ImageBatch(*batch_of(a, b)[:2]), 600, 32)
    scores = whole(600)[1]
    (estimate,) = mean_estimates(stream, "red", seed=0, resamples=1000).values()
    low, high = bootstrap_interval(scores, 1000, seed=0)
    width = high - low
    assert estimate.value == pytest.approx(scores.double().mean().item())
    assert estimate.low == pytest.approx(low, abs=0.15 * width) and estimate.high == pytest.approx(
        high, abs=0.15 * width
    )
    # Parts of another size hold the same images: the same interval.
    other = open_stream(tmp_path / "other", every=7)
    evaluate_stream(other, lambda a, b: ImageBatch(*batch_of(a, b)[:2]), 600, 32)
    again = mean_estimates(other, "red", seed=0, resamples=1000)[""]
    assert (again.low, again.high) == pytest.approx((estimate.low, estimate.high))


def test_reference_is_kept_with_what_it_is_of(tmp_path: Path) -> None:
    stream = open_stream(tmp_path / "real")
    evaluate_stream(stream, batch_of, 40, 4)
    reference = Statistics.of(stream, "fd", data="abc")
    path = tmp_path / "references" / "fd.safetensors"
    reference.save(path)
    network = Moved()
    restored = Statistics.load(path, network)
    assert restored.provenance == reference.provenance and restored.captions is None
    assert restored.provenance.images == restored.provenance.count == restored.moments.n == 40
    assert torch.equal(restored.moments.cov, reference.moments.cov)
    assert frechet_distance(restored.moments, Moments.of(whole(40)[0])) == pytest.approx(0, abs=1e-9)
    assert [p.name for p in path.parent.iterdir()] == ["fd.safetensors"]
    first = path.read_bytes()
    reference.save(path)
    assert path.read_bytes() == first
    network.protocol = "another"
    with pytest.raises(EvaluationError, match="protocol 'projection', the evaluator 'another'"):
        Statistics.load(path, network)
    network.protocol, network.sha256 = "projection", "f" * 64
    with pytest.raises(EvaluationError, match="has weights"):
        Statistics.load(path, network)
    path.write_bytes(first[:100])
    with pytest.raises(EvaluationError, match="is damaged"):
        Statistics.load(path)
    with pytest.raises(EvaluationError, match="does not exist"):
        Statistics.load(tmp_path / "no.safetensors")


def test_summary_names_every_metric(tmp_path: Path) -> None:
    real = open_stream(tmp_path / "real")
    evaluate_stream(real, batch_of, 60, 4)
    references = {"fd": Statistics.of(real, "fd", data="abc")}
    stream = open_stream(tmp_path / "sampled")
    evaluate_stream(stream, lambda a, b: batch_of(a + 1000, b + 1000), 60, 4)
    metrics = summarise(stream, references, seed=0, resamples=20)
    assert metrics.keys() == {"fd", "red"} and metrics["red"]["categories"].keys() == set(STYLE)
    for entry in (*metrics.values(), *metrics["red"]["categories"].values()):
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert metrics["fd"].keys() == {"value", "low", "high", "images", "real"}
    assert (metrics["fd"]["images"], metrics["fd"]["real"]) == (60, 60)
    assert metrics["fd"]["value"] == pytest.approx(
        frechet_distance(references["fd"].moments, ShardSums.of(stream, "fd", 1).moments())
    )
    assert summarise(stream, references, seed=0, resamples=20) == metrics
    bare = summarise(stream, references, seed=0, resamples=0)
    assert bare == without_intervals(metrics) and bare["red"].keys() == {"value", "categories"}
    assert bare["fd"].keys() == {"value", "images", "real"}
    assert without_categories(metrics) == {
        name: {k: v for k, v in e.items() if k != "categories"} for name, e in bare.items()
    }
    with pytest.raises(EvaluationError, match="fd: no reference"):
        summarise(stream, {}, seed=0, resamples=0)
    stream.features["fd"].sha256 = "f" * 64
    with pytest.raises(EvaluationError, match="other weights"):
        summarise(stream, references, seed=0, resamples=0)


def test_benchmark_prompts_are_read_by_style(tmp_path: Path) -> None:
    for style in STYLES:
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} {i}" for i in range(3)]))
    rows = read_benchmark(tmp_path)
    assert len(rows) == 12 and rows[:2] == [("anime", "anime 0"), ("anime", "anime 1")]
    assert [style for style, _ in read_benchmark(tmp_path, limit=1)] == list(STYLES)
    for text, message in (("[", "is not JSON"), ("[]", "not a list of prompts"), ('["", "a"]', "not a list")):
        (tmp_path / "photo.json").write_text(text)
        with pytest.raises(RankEError, match=message):
            read_benchmark(tmp_path)
    (tmp_path / "photo.json").unlink()
    with pytest.raises(RankEError, match=r"photo\.json does not exist"):
        read_benchmark(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: torch.tensor([0.0, float("nan")]), r"red: the value of image 1 is not finite"),
        (lambda: 1 / 0, r"evaluation\.scores\.red: failed with ZeroDivisionError: division by zero \(.*line \d+\)"),
    ],
)
def test_a_score_that_fails_is_named_at_once(tmp_path: Path, value: Callable[[], Tensor], message: str) -> None:
    class Broken(Red):
        def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
            return value()

    stream = ImageStream(tmp_path, "key", scores={"red": Broken()})
    with pytest.raises(EvaluationError, match=message):
        stream.add(*batch_of(0, 2)[:2])
    assert stream.done == 0


def test_a_part_of_another_stream_is_evaluated_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same images and networks: whole, and not what was evaluated here."""
    for name in ("a", "b"):
        evaluate_stream(open_stream(tmp_path / name, name), batch_of, 22, 4)
    own = open_stream(tmp_path / "a", "a").parts
    shutil.rmtree(own[1])
    shutil.copytree(tmp_path / "b" / own[1].name, own[1])
    capsys.readouterr()
    again = open_stream(tmp_path / "a", "a")
    assert again.parts == own[:1] and len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("name", ["rows.parquet", "tensors.safetensors", "files.json", "../stream.json"])
def test_what_is_damaged_is_evaluated_again(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = open_stream(tmp_path / "a")
    evaluate_stream(whole, batch_of, 22, 4)
    expected = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    damaged = (whole.parts[1] / name).resolve()
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    again = open_stream(tmp_path / "a")
    assert again.done == (0 if name.startswith("..") else len(next(iter(whole.rows("index")))[1]["index"]))
    assert len(capsys.readouterr().out.splitlines()) == 1
    evaluate_stream(again, batch_of, 22, 4)
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == expected
