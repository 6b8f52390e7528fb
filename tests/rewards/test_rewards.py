"""Rewards: the CLIP score is open_clip's, has a gradient in the pixels, and never scores what it should
refuse.
"""

import pytest
import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.rewards.base import RewardError
from rank_e.rewards.clip import ClipModel, ClipReward, clip_inputs, preprocess
from rank_e.shapes import clip

PROMPTS = ["a red circle", "two blue squares", "a red circle"]


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return clip.build(clip.TEXT, seed=1).eval().requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def test_score_is_a_hundred_times_open_clips_cosine(model: ClipModel, images: Tensor) -> None:
    scores = ClipReward(model, clip.tokenize)(images, PROMPTS)
    image = model.encode_image((images - 0.5) / 0.5, normalize=True)
    text = model.encode_text(clip.tokenize(PROMPTS), normalize=True)
    torch.testing.assert_close(scores, 100 * (image * text).sum(-1), rtol=1e-4, atol=1e-4)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("side", [48, 96, 32])
def test_gradient_reaches_the_pixels_and_climbs(model: ClipModel, side: int) -> None:
    reward = ClipReward(model, clip.tokenize)
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, side, side, generator=draw).requires_grad_()
    before = reward(images, PROMPTS[:2])
    (gradient,) = torch.autograd.grad(before.sum(), images)
    step = 0.01 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    gained = reward((images + step).detach(), PROMPTS[:2]) - before
    expected = 0.01 * gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close(gained, expected, rtol=0.1, atol=1e-3)
    assert (expected > 0.001).all()


def test_a_score_depends_on_its_own_image_and_prompt_alone(model: ClipModel, images: Tensor) -> None:
    reward = ClipReward(model, clip.tokenize)
    together = reward(images, PROMPTS)
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_worlds_evaluator_is_judged_on_what_it_was_trained_on(images: Tensor) -> None:
    evaluator = clip.build(clip.EVALUATOR)
    inputs = clip_inputs(evaluator, images)
    assert inputs.shape[-1] == evaluator.visual.image_size == 64
    larger = torch.nn.functional.interpolate(images, (64, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(inputs, (larger - 0.5) / 0.5)


def test_preprocess_resizes_the_shorter_side_and_cuts_the_centre() -> None:
    wide = torch.zeros(1, 3, 32, 64)
    wide[..., 16:48] = 1.0  # the centre square is white, both ends are black
    prepared = preprocess(wide, 16, (0.5,) * 3, (0.25,) * 3)
    assert prepared.shape == (1, 3, 16, 16)
    torch.testing.assert_close(prepared[..., 3:-3], torch.full((1, 3, 16, 10), 2.0), rtol=0, atol=0.01)
    fine = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    grey = preprocess(fine, 16, (0.0,) * 3, (1.0,) * 3)
    assert (grey - 0.5).abs().max() < 0.1  # antialiased: a fine pattern turns grey, not black or white


def test_what_cannot_be_scored_is_named(model: ClipModel, images: Tensor) -> None:
    reward = ClipReward(model, clip.tokenize, name="match")
    broken = images.clone()
    broken[1, 0, 5, 5] = float("nan")
    with pytest.raises(RewardError, match="match: score of image 1 is nan"):
        reward(broken, PROMPTS)
    with pytest.raises(RewardError, match="3 images for 2 prompts"):
        reward(images, PROMPTS[:2])
    with pytest.raises(RewardError, match="uint8"):
        reward((images * 255).to(torch.uint8), PROMPTS)
    with pytest.raises(RankEError, match="'purple'"):
        reward(images[:1], ["a purple circle"])
