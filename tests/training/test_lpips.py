"""LPIPS-VGG: the values of torchvision's VGG16 and the package's heads, from a local file, with a finite gradient."""

import inspect
import socket
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rank_e.errors import RankEError
from rank_e.io.torchvision_ops import declare_torchvision_ops
from rank_e.seeds import generator
from rank_e.training.lpips_vgg import LpipsVGG, lpips
from tests.helpers.discriminator_files import vgg_features

CUTS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in torchvision's `features`


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    return vgg_features()


@pytest.fixture(scope="module")
def vgg_file(features: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = {f"features.{name}": weight for name, weight in features.state_dict().items()}
    state["classifier.6.bias"] = torch.zeros(1000)  # the published file has a classifier, of which nothing is read
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as the published file is
    return path


@pytest.fixture(scope="module")
def distance(vgg_file: Path) -> LpipsVGG:
    return LpipsVGG(vgg_file)


@pytest.fixture(scope="module")
def heads() -> list[Tensor]:
    declare_torchvision_ops()
    import lpips

    path = Path(inspect.getfile(lpips)).parent / "weights/v0.1/vgg.pth"
    weights = torch.load(path, weights_only=True, map_location="cpu")
    return [weights[f"lin{i}.model.1.weight"] for i in range(5)]


def images(name: str, count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 40, generator=generator(0, name))


def by_hand(features: nn.Sequential, heads: list[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The paper's formula: squared differences of unit features, weighted by channel, averaged over places, summed."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    total = torch.zeros(len(a))
    x, y = ((p - mean.view(3, 1, 1)) / std.view(3, 1, 1) for p in (a, b))
    for index, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if index in CUTS:
            difference = (nn.functional.normalize(x, dim=1) - nn.functional.normalize(y, dim=1)).square()
            weights = heads[CUTS.index(index)].view(1, -1, 1, 1)
            total = total + (difference * weights).sum(1).mean((1, 2))
    return total


def test_it_is_the_papers_formula_on_torchvisions_layers(distance, features, heads):
    a, b = images("a"), images("b")
    found = distance.distances(a, b)
    assert found.shape == (2,) and bool((found > 0.01).all())
    torch.testing.assert_close(found, by_hand(features, heads, a, b), atol=2e-4, rtol=2e-3)  # lpips rounds mean and std
    torch.testing.assert_close(distance(a, b), found.mean())


def test_the_layers_are_those_that_torchvision_builds():
    declare_torchvision_ops()
    from torchvision.models import vgg16

    with torch.device("meta"):
        theirs = vgg16(weights=None).features
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in vgg_features().state_dict().items()}
    assert [type(layer) for layer in theirs[:30]] == [type(layer) for layer in vgg_features()]


def test_the_heads_are_the_packages(distance, heads):
    for head, weight in zip(distance.network.lins, heads, strict=True):
        assert torch.equal(head.model[1].weight, weight) and bool((weight >= 0).all())


def test_it_is_a_distance_and_each_pair_is_alone(distance):
    a, b = images("a"), images("b")
    assert distance(a, a).item() == 0.0
    torch.testing.assert_close(distance(a, b), distance(b, a))
    torch.testing.assert_close(distance.distances(a, b)[:1], distance.distances(a[:1], b[:1]))
    assert distance(a, a.lerp(b, 0.1)) < distance(a, a.lerp(b, 0.5))


def test_a_gradient_reaches_both_images_and_no_weight(distance):
    a, b = images("a").requires_grad_(), images("b").requires_grad_()
    distance(a, b).backward()
    for image in (a, b):
        assert image.grad is not None and bool(image.grad.isfinite().all()) and image.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.network.parameters())
    assert not any(module.training for module in distance.network.modules())


def test_dead_features_give_a_finite_gradient(vgg_file, tmp_path):
    state = torch.load(vgg_file, weights_only=True)
    state["features.28.bias"] -= 1e4  # every channel of the last map is zero at every place, where a norm has no slope
    torch.save(state, tmp_path / "dead.pth")
    image = images("a").requires_grad_()
    LpipsVGG(tmp_path / "dead.pth")(image, images("b")).backward()
    assert image.grad is not None and bool(image.grad.isfinite().all()) and image.grad.abs().sum() > 0


def test_half_precision_images_are_compared_in_float32(distance):
    value = distance(images("a").bfloat16(), images("b").bfloat16())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, distance(images("a"), images("b")), atol=1e-2, rtol=1e-2)


def test_loading_needs_no_network_no_luck_and_says_nothing(vgg_file, monkeypatch):
    def refused(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refused)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LpipsVGG(vgg_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_is_no_vgg16_is_named(vgg_file, tmp_path):
    with pytest.raises(RankEError, match=r"none\.pth"):
        LpipsVGG(tmp_path / "none.pth")
    state = torch.load(vgg_file, weights_only=True)
    for name, change in {
        "missing": lambda s: s.pop("features.28.bias"),
        "unexpected": lambda s: s.update({"features.40.bias": torch.zeros(1)}),
        "shape": lambda s: s.update({"features.0.bias": torch.zeros(3)}),
        "finite": lambda s: s.update({"features.0.bias": torch.full((64,), float("nan"))}),
    }.items():
        wrong = dict(state)
        change(wrong)
        torch.save(wrong, tmp_path / f"{name}.pth")
        with pytest.raises(RankEError, match=rf"{name}\.pth.*features\.") as caught:
            LpipsVGG(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)


def test_images_too_small_for_four_poolings_are_refused(distance):
    with pytest.raises(RankEError, match="sides >= 16"):
        distance(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_one_network_serves_all_as_long_as_its_file_is_the_same(vgg_file: Path, tmp_path: Path) -> None:
    file, device = tmp_path / "vgg16.pth", torch.device("cpu")
    file.write_bytes(vgg_file.read_bytes())
    first = lpips(tmp_path, device, file=file.name)
    assert lpips(tmp_path, device, file=file.name) is first
    tensors = torch.load(file, weights_only=True)
    torch.save({name: 2 * x for name, x in tensors.items()}, file, _use_new_zipfile_serialization=False)
    second = lpips(tmp_path, device, file=file.name)
    assert second is not first
    images = torch.rand(2, 1, 3, 16, 16, generator=generator(0, "images"))
    assert first(*images) != second(*images)
