"""The embedded world's metrics, reward and perceptual loss as `params.yaml` names them, on the shipped networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rank_e.config import load
from rank_e.errors import RankEError
from rank_e.evaluation.base import EvaluationError
from rank_e.evaluation.frechet import Moments, frechet_distance
from rank_e.evaluation.metric import Metric
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.stream import ImageStream
from rank_e.evaluation.suite import Suite, build_suite
from rank_e.evaluation.summary import summarise
from rank_e.io.pixels import to_bytes
from rank_e.rewards.clip import clip_inputs
from rank_e.rewards.mixture import build_rewards
from rank_e.shapes import clip, world
from rank_e.shapes.backbone import load_world_clip
from rank_e.shapes.dataset import ShapesDataset
from rank_e.shapes.metrics import CachedEvaluator
from rank_e.training.networks import build_perceptual
from tests.helpers.sections import scores

ASSETS, CPU = Path("assets/shapes"), torch.device("cpu")
DISTANCES = ("fd", "fd_mid", "fd_patch")
PARAMS = load("profiles/shapes.yaml")


def sections(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: section.model_dump() for name, section in named.items()}


@pytest.fixture(scope="module")
def suite() -> Suite:
    return build_suite(PARAMS.evaluation.distances, PARAMS.evaluation.scores, ASSETS, CPU)


@pytest.fixture(scope="module")
def real() -> tuple[Tensor, list[str], list[str]]:
    pairs = ShapesDataset("held_out").prompts(80, 5)
    prompts, categories = [prompt for prompt, _ in pairs], [category for _, category in pairs]
    return ShapesDataset("held_out").real_images(prompts, 6), prompts, categories


def evaluate_all(folder: Path, suite: Suite, images: Tensor, prompts: list[str], categories: list[str]) -> ImageStream:
    stream = ImageStream(folder, "", features=suite.features, scores=suite.scores, every=32)
    for start in range(0, len(images), 32):
        batch = slice(start, start + 32)
        stream.add(to_bytes(images[batch]), prompts[batch], categories[batch])
    stream.finish()
    return stream


def test_real_images_are_right_near_and_match_their_prompts_and_damage_shows(
    suite: Suite, real: tuple[Tensor, list[str], list[str]], tmp_path: Path
) -> None:
    images, prompts, categories = real
    others = ShapesDataset("held_out").real_images(prompts, 7)
    known = evaluate_all(tmp_path / "known", suite, others, prompts, categories)
    references = {name: Statistics.of(known, name, "other scenes") for name in DISTANCES}
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
    clean, damaged = (
        summarise(evaluate_all(tmp_path / name, suite, x, prompts, categories), references, seed=1, resamples=20)
        for name, x in (("clean", images), ("damaged", blurred))
    )
    assert clean["accuracy"]["value"] == 1.0 and damaged["accuracy"]["value"] < 0.9
    assert clean["clip"]["value"] > damaged["clip"]["value"]
    for name in DISTANCES:
        assert damaged[name]["value"] > 2 * clean[name]["value"]
        assert clean[name]["low"] < clean[name]["value"] < clean[name]["high"]
    assert clean["accuracy"]["categories"].keys() == set(categories)


def test_a_distance_counts_every_patch_of_every_image(
    suite: Suite, real: tuple[Tensor, list[str], list[str]], tmp_path: Path
) -> None:
    stream = evaluate_all(tmp_path / "s", suite, *real)
    rows = torch.cat([part for _, part in stream.feature_rows("fd_patch")])
    assert rows.ndim == 3 and len(rows) == len(real[0])
    by_hand = Moments.of(rows.flatten(0, 1))
    found = Statistics.of(stream, "fd_patch", "").moments
    torch.testing.assert_close(found.cov, by_hand.cov, rtol=1e-6, atol=1e-8)
    assert found.n == by_hand.n and frechet_distance(found, by_hand) == pytest.approx(0, abs=1e-3)


def test_the_evaluator_runs_once_for_all_its_metrics_and_again_for_other_images(
    real: tuple[Tensor, list[str], list[str]],
) -> None:
    evaluator = CachedEvaluator(load_world_clip(ASSETS, "evaluator", clip.EVALUATOR, CPU))
    runs = []
    evaluator.model.visual.attnpool.register_forward_hook(lambda *_: runs.append(1))
    images, same, other = real[0][:4].clone(), real[0][:4].clone(), real[0][4:8]
    first = evaluator(images)
    assert evaluator(same) is first and len(runs) == 1
    images[0] = other[0]  # the very tensor that was seen, changed in place
    changed = evaluator(images)
    assert len(runs) == 2 and not torch.equal(changed.last[0], first.last[0])
    torch.testing.assert_close(changed.embedding, evaluator.model.encode_image(clip_inputs(evaluator.model, images)))
    assert len(evaluator(other[:2]).last) == 2


def test_the_patch_network_is_built_once(
    real: tuple[Tensor, list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = build_suite(PARAMS.evaluation.distances, {}, ASSETS, CPU).features["fd_patch"]
    monkeypatch.setattr("rank_e.shapes.features.PatchNet.__init__", lambda self: pytest.fail("built again"))
    images = to_bytes(real[0][:3])
    assert torch.equal(features(images), features(images))


def test_originals_repeat_the_prompts_in_other_scenes() -> None:
    prompts = [prompt for prompt, _ in ShapesDataset("held_out").prompts(6, 1)]
    dataset = ShapesDataset("held_out")
    whole = dataset.originals(0, 12, prompts, 3)
    assert whole.captions == prompts * 2
    later = dataset.originals(6, 12, prompts, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.images[6:], later.images, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole.images[:6], whole.images[6:], strict=True))
    named = [world.Prompt.from_text(i, text) for i, text in enumerate(whole.captions)]
    assert world.check_images(torch.stack(whole.images).float() / 255, named).all()


def test_the_reward_prefers_the_right_image_and_pulls_on_pixels(real: tuple[Tensor, list[str], list[str]]) -> None:
    images, prompts, _ = real
    mixture = build_rewards(PARAMS.ranking.rewards, ASSETS, CPU)
    asked = images[:16].clone().requires_grad_()
    right, wrong = mixture(asked, prompts[:16]), mixture(asked, prompts[16:32])
    assert right.mean() > wrong.mean() + 5
    (pull,) = torch.autograd.grad(right.sum(), asked)
    assert torch.isfinite(pull).all() and bool((pull.flatten(1).norm(dim=1) > 0).all())


def test_the_perceptual_loss_is_zero_for_equal_images_alone(real: tuple[Tensor, list[str], list[str]]) -> None:
    loss = build_perceptual(PARAMS.decoder.perceptual, ASSETS, CPU)
    assert loss(real[0][:4], real[0][:4]).item() == 0
    assert loss(real[0][:4], real[0][4:8]).item() > 0.01


def undescribed(folder: Path, device: torch.device) -> Any:
    """A user's scorer that does not say what it measures."""
    return lambda images, prompts: torch.zeros(len(prompts))


def unhashed(folder: Path, device: torch.device) -> Any:
    """A user's scorer that does not name its weights."""
    scorer = undescribed(folder, device)
    scorer.metric, scorer.protocol = Metric("Zero", "higher", "nothing"), "zero"
    return scorer


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("rank_e.shapes.metrics:nothing", "cannot be imported"),
        ("rank_e.nowhere:metric", "cannot be imported"),
        ("rank_e.shapes.metrics:Tensor", "failed with TypeError"),
        ("builtins:repr", "failed with TypeError"),
        (
            "tests.shapes.test_shapes_metrics:undescribed",
            "undescribed gives has no metric; give it the attribute metric",
        ),
        (
            "tests.shapes.test_shapes_metrics:unhashed",
            "unhashed gives has no sha256; give it the attribute sha256, a str",
        ),
    ],
)
def test_a_metric_that_cannot_be_built_is_named(kind: str, problem: str) -> None:
    with pytest.raises(EvaluationError, match=rf"evaluation\.scores\.own.*{problem}"):
        build_suite({}, scores({"own": {"kind": kind}}), ASSETS, CPU)


def test_a_base_without_its_networks_is_named(tmp_path: Path) -> None:
    with pytest.raises(RankEError, match=r"reward\.safetensors does not exist"):
        build_rewards(PARAMS.ranking.rewards, tmp_path, CPU)
