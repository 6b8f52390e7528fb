"""Resizing by products of matrices: torch's own kernel and Pillow say what is right."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rank_e.io.resize import Mode, resize, resize_by_products, resize_weights
from rank_e.seeds import generator

MODES: tuple[Mode, ...] = ("bicubic", "bilinear")
SIZES = [(256, 256), (384, 384), (48, 48), (17, 31), (5, 7), (2, 3)]
TARGETS = [(224, 224), (64, 64), (13, 50), (31, 17), (3, 2)]  # torch's kernel is wrong for a width of 1


def noise(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=generator(0, "resize", height, width))


def torchs(images: Tensor, height: int, width: int, mode: Mode) -> Tensor:
    return F.interpolate(images, (height, width), mode=mode, antialias=True, align_corners=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_products_are_torchs_antialiased_interpolation(size: tuple[int, int], mode: Mode) -> None:
    images = noise(*size)
    for target in [*TARGETS, (size[0], 20), (20, size[1]), size]:
        found = resize_by_products(images, *target, mode)
        torch.testing.assert_close(found, torchs(images, *target, mode), rtol=0, atol=1e-5)
        assert torch.equal(resize(images, *target, mode), images if target == size else torchs(images, *target, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", [(224, 200), (9, 40), (40, 9), (1, 1)])
def test_products_are_pillows_filters(target: tuple[int, int], mode: Mode) -> None:
    plane = noise(33, 21)[0, 0]
    kind = Image.Resampling.BICUBIC if mode == "bicubic" else Image.Resampling.BILINEAR
    pillows = np.asarray(Image.fromarray(plane.numpy()).resize(target[::-1], kind))
    found = resize_by_products(plane[None, None], *target, mode)
    torch.testing.assert_close(found[0, 0], torch.from_numpy(pillows.copy()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_the_linear_map(mode: Mode) -> None:
    pull = torch.rand(2, 3, 10, 40, generator=generator(0, "pull"))
    gradients = []
    for function in (resize_by_products, torchs):
        images = noise(17, 31).requires_grad_()
        (gradient,) = torch.autograd.grad((function(images, 10, 40, mode) * pull).sum(), images)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
    double = noise(6, 5)[:1].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize_by_products(x, 4, 9, mode), double)


def test_enlarging_bilinearly_is_the_same_without_antialiasing() -> None:
    images = noise(8, 8)
    plain = F.interpolate(images, (32, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_by_products(images, 32, 24, "bilinear"), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cast", [False, True])
def test_in_bfloat16_only_the_values_are_rounded(cast: bool) -> None:
    images = noise(64, 48).bfloat16()
    exact = resize_by_products(images.double(), 30, 30)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        found = resize_by_products(images, 30, 30)
        plain = resize(images, 30, 30)
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
    assert plain.dtype == torch.bfloat16 and torch.equal(plain, torchs(images.float(), 30, 30, "bicubic").bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        white = resize_by_products(torch.ones(1, 1, 64, 48), 30, 30)
    torch.testing.assert_close(white, torch.ones(1, 1, 30, 30), rtol=0, atol=1e-6)


def test_weights_are_made_once() -> None:
    made = resize_weights(40, 30, "bicubic", torch.device("cpu"), torch.float32)
    assert resize_weights(40, 30, "bicubic", torch.device("cpu"), torch.float32) is made
    torch.testing.assert_close(made.sum(1), torch.ones(30))
