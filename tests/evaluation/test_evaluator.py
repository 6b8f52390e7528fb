"""The evaluator: nested metrics of tokens, the same whatever the batches, kills and folders; and its tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rank_e.config.profiles import load_profile
from rank_e.errors import RankEError
from rank_e.evaluation.base import EvaluationError, Images
from rank_e.evaluation.evaluator import Evaluator, decode
from rank_e.evaluation.frechet import Moments, frechet_distance
from rank_e.evaluation.metric import Metric
from rank_e.evaluation.prompt_sets import PromptSet
from rank_e.evaluation.reference import Provenance, Statistics
from rank_e.evaluation.sampling import sample_prompt_set
from rank_e.evaluation.suite import Suite
from rank_e.evaluation.summary import without_intervals
from rank_e.io.pixels import to_bytes
from rank_e.seeds import generator
from tests.helpers.tiny_nets import POLICY, tiny_policy, tiny_tokenizer

COUNT = 20
PARAMS = load_profile("profiles/tiny.yaml").evaluation


class Killed(BaseException):
    """What stops a run here; like a signal, no handler of errors sees it."""


class Colour:
    """Mean red, green and blue of an image as features, or mean red as its score."""

    metric, sha256 = Metric("Colour", "nearer", "mean colour"), "0" * 64

    def __init__(self, protocol: str) -> None:
        self.protocol, self.seen = protocol, 0

    def __call__(self, images: Images, prompts: Sequence[str] | None = None) -> Tensor:
        self.seen += len(images)
        means = torch.stack([image.float().mean((1, 2)) / 255 for image in images])
        return means if prompts is None else means[:, 0]


def tokens_of(count: int = COUNT) -> Tensor:
    return torch.randint(16, (count, 4), generator=generator(0, "tokens"), dtype=torch.int32)


def evaluator(batch_size: int = 3, resamples: int = 20, **changes: Any) -> Evaluator:
    suite = Suite({"fd": Colour("features")}, {"red": Colour("score")})
    kinds = ["warm" if place % 2 else "cold" for place in range(COUNT)]
    prompt_set = PromptSet("held_out", [f"prompt {i}" for i in range(COUNT)], kinds, suite, suite.described())
    moments = Moments.of(torch.rand(50, 3, generator=generator(0, "real")))
    references = {"fd": Statistics(moments, Provenance("features", "0" * 64, "data", 50, 50))}
    made = Evaluator(prompt_set, references, batch_size, seed=1, resamples=resamples, device=torch.device("cpu"))
    return replace(made, **changes)


def test_metrics_are_those_of_the_decoded_images() -> None:
    tokenizer, tokens = tiny_tokenizer(), tokens_of()
    found = evaluator().evaluate(tokenizer, tokens)
    means = to_bytes(decode(tokenizer, tokens)).float().mean((2, 3)) / 255
    assert found.keys() == {"fd", "red"}
    assert found["red"]["value"] == pytest.approx(means[:, 0].double().mean().item(), abs=1e-6)
    assert found["red"]["low"] < found["red"]["value"] < found["red"]["high"]
    cold = found["red"]["categories"]["cold"]
    assert cold["value"] == pytest.approx(means[::2, 0].double().mean().item(), abs=1e-6) and "low" in cold
    moments = evaluator().references["fd"].moments
    assert found["fd"]["value"] == pytest.approx(frechet_distance(Moments.of(means), moments), rel=1e-3)
    bare = evaluator().evaluate(tokenizer, tokens, intervals=False)
    assert bare == without_intervals(found) and "low" not in str(bare)


def test_a_killed_evaluation_goes_on_in_its_folder_and_ends_in_the_same_metrics(tmp_path: Path) -> None:
    tokenizer, tokens = tiny_tokenizer(), tokens_of()
    whole = evaluator().evaluate(tokenizer, tokens, tmp_path / "whole")

    def dying(steps: range, label: str) -> Any:
        for step in steps:
            if step >= 9:
                raise Killed
            yield step

    with pytest.raises(Killed):
        evaluator(progress=dying).evaluate(tokenizer, tokens, tmp_path / "killed")
    again = evaluator()
    assert again.evaluate(tokenizer, tokens, tmp_path / "killed") == whole
    score = again.prompt_set.suite.scores["red"]
    assert isinstance(score, Colour) and score.seen == COUNT - 9  # what was evaluated is not evaluated again
    assert len(again.scores(tmp_path / "killed")["red"]) == COUNT
    with pytest.raises(EvaluationError, match="20 images of 19"):
        evaluator().evaluate(tokenizer, tokens[:19], tmp_path / "killed")


def test_without_a_folder_every_evaluation_begins_anew() -> None:
    first, second = tiny_tokenizer(), tiny_tokenizer()
    with torch.no_grad():
        second.last_layer.add_(0.1)
    one = evaluator()
    assert one.evaluate(first, tokens_of()) == one.evaluate(first, tokens_of())
    assert one.evaluate(first, tokens_of())["red"] != one.evaluate(second, tokens_of())["red"]


def test_a_correction_sees_every_image_with_its_number() -> None:
    numbers: list[int] = []

    def blackened(images: Tensor, start: int) -> Tensor:
        numbers.extend(range(start, start + len(images)))
        return torch.zeros_like(images)

    found = evaluator().evaluate(tiny_tokenizer(), tokens_of(), correct=blackened)
    assert numbers == list(range(COUNT)) and found["red"]["value"] == 0


class Backbone:
    """Text features that the prompt decides, for the tiny policy."""

    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        shape = (POLICY.cls_token_num, POLICY.caption_dim)
        features = torch.stack([torch.randn(shape, generator=generator(0, prompt)) for prompt in prompts])
        return features, torch.ones(len(prompts), POLICY.cls_token_num, dtype=torch.bool)


def test_sampled_tokens_go_on_after_those_that_are_there_and_forget_the_batches() -> None:
    prompt_set, seen = evaluator().prompt_set, []
    params = PARAMS.model_copy(update={"batch_size": 6})

    def tokens(**options: Any) -> Tensor:
        return sample_prompt_set(Backbone(), tiny_policy(), prompt_set, params, fast=False, **options)  # type: ignore[arg-type]

    whole = tokens(sampled=lambda rows: seen.append(sum(map(len, rows))))
    assert whole.shape == (COUNT, 4) and whole.dtype == torch.int32 and seen == [6, 12, 18, 20]
    assert torch.equal(tokens(done=whole[:6]), whole)
    assert torch.equal(tokens(done=whole), whole)
    params = PARAMS.model_copy(update={"batch_size": 7})
    assert torch.equal(tokens(), whole)
    prompt_set = replace(prompt_set, name="benchmark")  # other seeds
    assert not torch.equal(tokens(), whole)


def test_a_metric_without_a_direction_is_refused() -> None:
    with pytest.raises(RankEError, match="metric Speed: better = 'up'; give higher, lower, nearer"):
        Metric("Speed", "up", "")  # type: ignore[arg-type]
