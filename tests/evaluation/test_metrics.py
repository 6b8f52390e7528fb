"""Metrics: each against an independent calculation, and each moves the way its name says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_e.errors import RankEError
from rank_e.evaluation.affine import AffineControl
from rank_e.evaluation.bootstrap import bootstrap_interval
from rank_e.evaluation.frechet import Moments, frechet_distance
from rank_e.evaluation.tokens import entropy_bits, token_histogram, token_kl
from rank_e.io.torchvision_ops import declare_torchvision_ops
from rank_e.rewards.clip import ClipModel
from rank_e.shapes import clip, world
from rank_e.shapes.features import PatchNet, evaluator_features, patch_features, patches_of


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def evaluator() -> ClipModel:
    return clip.build(clip.EVALUATOR, seed=3).eval()


@pytest.fixture(scope="module")
def real() -> tuple[torch.Tensor, list[str]]:
    scenes = world.scenes("held_out", 64, 5)
    return world.images(scenes), [scene.caption for scene in scenes]


@pytest.mark.parametrize("dim", [3, 24])
def test_frechet_distance_agrees_with_clean_fid(dim: int) -> None:
    declare_torchvision_ops()  # clean-fid imports torchvision
    from cleanfid.fid import frechet_distance as clean_fid_distance

    a, b = normal(1, 400, dim) @ normal(2, dim, dim), 0.3 + normal(3, 300, dim) @ normal(4, dim, dim)
    theirs = clean_fid_distance(
        a.mean(0).numpy(), np.cov(a.numpy(), rowvar=False), b.mean(0).numpy(), np.cov(b.numpy(), rowvar=False)
    )
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(theirs, rel=1e-3)


def test_frechet_distance_in_closed_form_and_when_rank_deficient() -> None:
    a = Moments(torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 9.0]).double()), 10)
    b = Moments(torch.tensor([3.0, 4.0]).double(), torch.diag(torch.tensor([1.0, 0.0]).double()), 10)
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 1) ** 2 + 3**2)
    few = Moments.of(normal(5, 4, 10))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    with pytest.raises(RankEError, match="2 against 10"):
        frechet_distance(a, few)


def test_moments_are_torchs_and_refuse_what_is_not_finite() -> None:
    rows = 1000 + normal(6, 50, 7)
    moments = Moments.of(rows)
    assert moments.n == 50
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(moments.cov, torch.cov(rows.T), rtol=1e-9, atol=1e-9)
    with pytest.raises(RankEError, match="NaN"):
        Moments.of(torch.tensor([[1.0], [float("nan")]]))


def test_bootstrap_of_a_mean_has_the_standard_error_and_is_seeded() -> None:
    values = normal(9, 400)
    low, high = bootstrap_interval(values, 2000, seed=1)
    assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / 20, rel=0.1)
    assert low < float(values.mean()) < high
    assert bootstrap_interval(values, 50, seed=1) == bootstrap_interval(values, 50, seed=1)
    assert bootstrap_interval(values, 50, seed=1) != bootstrap_interval(values, 50, seed=2)
    by_function = bootstrap_interval(lambda w: float(w @ values) / 400, 50, seed=1, rows=400)
    assert by_function == pytest.approx(bootstrap_interval(values, 50, seed=1))
    narrow = bootstrap_interval(values, 2000, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize("bad", [{"n": 1}, {"n": 10, "level": 1.0}])
def test_bootstrap_refuses_what_has_no_interval(bad: dict) -> None:
    with pytest.raises(RankEError, match="bootstrap"):
        bootstrap_interval(torch.ones(5), seed=0, **bad)


def test_token_metrics_in_closed_form() -> None:
    p = token_histogram(torch.tensor([[0, 0], [1, 3]]), 4)
    assert p.tolist() == [2, 1, 0, 1]
    assert entropy_bits(p) == pytest.approx(1.5)
    assert entropy_bits(torch.ones(256)) == pytest.approx(8)
    assert entropy_bits(torch.tensor([5.0, 0.0])) == 0
    q = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert token_kl(p, q, smoothing=0) == pytest.approx(0.5 * np.log(2))
    assert token_kl(p, p) == 0
    smoothed = (p + 0.5) / 6
    assert token_kl(p, q) == pytest.approx(float((smoothed * (smoothed / 0.25).log()).sum()))


def test_token_kl_is_from_the_policy_to_the_real_tokens() -> None:
    policy, ground_truth = torch.tensor([1000.0, 0.0]), torch.tensor([500.0, 500.0])
    assert token_kl(policy, ground_truth) == pytest.approx(np.log(2), abs=0.01)
    assert token_kl(ground_truth, policy) > 2  # the real images use a code that the policy never does


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 500), min_size=2, max_size=30).flatmap(
        lambda p: st.tuples(st.just(p), st.lists(st.integers(0, 500), min_size=len(p), max_size=len(p)))
    )
)
def test_token_kl_is_finite_and_not_negative(counts: tuple[list[int], list[int]]) -> None:
    value = token_kl(torch.tensor(counts[0]), torch.tensor(counts[1]))
    assert 0 <= value < np.inf


@pytest.mark.parametrize("tokens", [[4], [-1], []])
def test_a_token_outside_the_codebook_is_named(tokens: list[int]) -> None:
    with pytest.raises(RankEError, match="codebook of 4"):
        token_histogram(torch.tensor(tokens), 4)


def test_features_do_not_depend_on_the_batch(evaluator: ClipModel, real: tuple[torch.Tensor, list[str]]) -> None:
    images = real[0][:8]
    for whole, parts in zip(
        evaluator_features(evaluator, images),
        evaluator_features(evaluator, images, 3),
        strict=True,
    ):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    assert patch_features(PatchNet(), images).shape == (8, 9, 64)
    torch.testing.assert_close(
        patch_features(PatchNet(), images), patch_features(PatchNet(), images, 3), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        patch_features(PatchNet(), images)[5:], patch_features(PatchNet(), images[5:]), rtol=1e-4, atol=1e-5
    )


def test_mid_level_features_serve_a_vision_transformer_too(real: tuple[torch.Tensor, list[str]]) -> None:
    last, middle, _ = evaluator_features(clip.build(clip.TEXT).eval(), real[0][:4])
    assert last.shape == (4, 64) and middle.shape == (4, 128)


def test_patches_lie_side_by_side() -> None:
    images = torch.rand(2, 3, 33, 63, generator=torch.Generator().manual_seed(0))
    patches = patches_of(images)
    places = [(top, left) for top in (0, 16) for left in (0, 16, 32)]  # what does not fill a patch is left out
    assert patches.shape == (2, len(places), 3, 16, 16)
    for place, (top, left) in enumerate(places):
        assert torch.equal(patches[:, place], images[:, :, top : top + 16, left : left + 16])
    with pytest.raises(RankEError, match="16 x 16"):
        patches_of(images[..., :15])


def test_affine_control_undoes_a_change_of_brightness_and_contrast(
    real: tuple[torch.Tensor, list[str]],
) -> None:
    images = 0.25 + 0.5 * real[0]
    faded = 0.1 + 0.8 * images
    corrected = AffineControl.fit(faded, images)(faded)
    torch.testing.assert_close(corrected, images, rtol=0, atol=1e-4)
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
    assert (AffineControl.fit(blurred, images)(blurred) - images).abs().mean() > 0.01  # it draws no edges


def test_patch_features_are_computed_where_network_and_images_lie() -> None:
    elsewhere = torch.device("meta")
    found = patch_features(PatchNet().to(elsewhere), torch.rand(5, 3, 48, 48, device=elsewhere), 2)
    assert found.device == elsewhere and found.shape == (5, 9, 64)


def test_patch_features_see_texture_and_not_flat_colour(real: tuple[torch.Tensor, list[str]]) -> None:
    images = 0.2 + 0.6 * real[0]
    tinted = images + torch.tensor([0.1, -0.1, 0.05]).view(3, 1, 1)
    torch.testing.assert_close(
        patch_features(PatchNet(), tinted), patch_features(PatchNet(), images), rtol=1e-3, atol=1e-3
    )
    noisy = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert (patch_features(PatchNet(), noisy) - patch_features(PatchNet(), images)).abs().mean() > 0.05
