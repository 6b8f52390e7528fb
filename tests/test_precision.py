"""What computes in bfloat16 under runtime.dtype, and what stays float32: the same code on a CPU as on a GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rank_e.precision import GroupNorm, Precision, channels_last, float32_island
from rank_e.rewards.clip import ClipReward, clip_inputs, preprocess
from rank_e.rewards.mixture import Mixture, Term
from rank_e.rewards.preprocessing import clip_protocol, hps_protocol
from rank_e.seeds import generator
from rank_e.shapes import clip
from rank_e.shapes.backbone import load_world_clip
from rank_e.shapes.perceptual import perceptual
from rank_e.training.lpips_vgg import LpipsVGG
from rank_e.training.patchgan import PatchGAN
from tests.helpers.discriminator_files import vgg_features

CPU = torch.device("cpu")
HALF, FULL = Precision(CPU, torch.bfloat16), Precision(CPU, torch.float32)
PROMPTS = ["a red circle", "a blue square", "a red circle", "two green triangles"]


def images(name: str, count: int = 4, side: int = 48) -> Tensor:
    return torch.rand(count, 3, side, side, generator=generator(0, name))


def test_bfloat16_is_autocast_around_a_network_and_an_island_within_it_is_float32() -> None:
    layer, x = nn.Conv2d(3, 4, 3), images("x")
    with FULL.autocast():
        full = layer(channels_last(x))
    assert full.dtype == torch.float32 and torch.equal(full, layer(x))
    with HALF.autocast():
        half = layer(channels_last(x))
        with float32_island(CPU):
            island = layer(channels_last(x))
    assert half.dtype == torch.bfloat16 and half.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(island, full)
    half.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == layer.weight.dtype == torch.float32


def test_an_autocast_of_its_own_for_each_pass_sees_the_weights_as_they_are() -> None:
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with torch.no_grad(), HALF.autocast():
        before = layer(x)
    with torch.no_grad():
        layer.weight.add_(1.0)
    with HALF.autocast():
        after = layer(x)
    assert after.requires_grad and (after - before).min() > 2


def test_group_norm_keeps_the_type_and_its_sums_are_those_of_float32() -> None:
    norm, x = GroupNorm(2, 8), 3 + torch.randn(2, 8, 32, 32, generator=generator(0, "maps"))
    plain = nn.GroupNorm(2, 8)
    for weights in (norm, plain):
        with torch.no_grad():
            weights.weight.copy_(torch.linspace(0.5, 1.5, 8))
    assert torch.equal(norm(x), plain(x))
    for precision in (HALF, FULL):
        with precision.autocast():
            half = norm(x.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), plain(x.bfloat16().float()), atol=0.03, rtol=0.02)


@pytest.fixture(scope="module")
def model() -> clip.ClipModel:
    return load_world_clip(Path("assets/shapes"), "reward", clip.REWARD, CPU)


@pytest.mark.parametrize("prepare", [preprocess, clip_protocol, hps_protocol])
def test_a_clip_reward_prepares_pixels_and_compares_in_float32(model: clip.ClipModel, prepare) -> None:
    seen: list[Tensor] = []

    def spy(x: Tensor, *rest) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        seen.append(prepare(x, *rest))
        return seen[-1]

    reward = ClipReward(model, clip.tokenize, prepare=spy)
    exact, rounded = (
        Mixture({"clip": Term(reward)}, dtype)(images("pair"), PROMPTS) for dtype in (FULL.dtype, HALF.dtype)
    )
    assert torch.equal(seen[0], seen[1]) and seen[0].dtype == torch.float32
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 1.5  # of 100: as far as features in bfloat16 lie from those in float32
    with HALF.autocast():
        seen_by_network = model.encode_image(clip_inputs(model, images("pair"), prepare)).double()
        text = model.encode_text(clip.tokenize(list(dict.fromkeys(PROMPTS)))).double()[[0, 1, 0, 2]]
    by_hand = 100 * torch.cosine_similarity(seen_by_network, text, dim=1)
    torch.testing.assert_close(rounded.double(), by_hand, atol=1e-4, rtol=0)


def test_a_gradient_in_bfloat16_points_where_that_in_float32_does(model: clip.ClipModel) -> None:
    reward, slopes = ClipReward(model, clip.tokenize), []
    for dtype in (FULL.dtype, HALF.dtype):
        x = images("pair").requires_grad_()
        Mixture({"clip": Term(reward)}, dtype)(x, PROMPTS).sum().backward()
        assert x.grad is not None and x.grad.dtype == torch.float32
        slopes.append(x.grad.flatten())
    assert torch.cosine_similarity(slopes[0], slopes[1], dim=0) > 0.95


def test_perceptual_distances_are_formed_in_float32_of_bfloat16_maps(tmp_path: Path) -> None:
    torch.save({f"features.{k}": v for k, v in vgg_features().state_dict().items()}, tmp_path / "vgg.pth")
    a, b = images("a", 2, 32), images("b", 2, 32)
    lpips = LpipsVGG(tmp_path / "vgg.pth")
    with HALF.autocast():
        found, maps = lpips.distances(a, b), [lpips.features(x) for x in (a, b)]
    by_hand = torch.zeros(2, dtype=torch.float64)
    for x, y, head in zip(*maps, lpips.network.lins, strict=True):
        assert x.dtype == torch.bfloat16
        x, y = (torch.nn.functional.normalize(m.double(), dim=1) for m in (x, y))
        by_hand += ((x - y).square() * head.model[1].weight.double()).sum(1).mean((1, 2))
    torch.testing.assert_close(found.double(), by_hand, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, lpips.distances(a, b), atol=0, rtol=0.03)
    world = perceptual(Path("assets/shapes"), CPU)
    with HALF.autocast():
        half = world(a, b)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(world(a, b).item(), rel=0.03)


def test_a_discriminator_reads_float32_weights_in_bfloat16() -> None:
    net = PatchGAN(8, 2).initialise(generator(0, "net"))
    with HALF.autocast():
        logits = net(images("x"))
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), net(images("x")), atol=0.01, rtol=0.02)
