"""The PatchGAN: its patches, its range of inputs, its weights' seed."""

import pytest
import torch

from rank_e.errors import RankEError
from rank_e.seeds import generator
from rank_e.training.patchgan import PatchGAN


def discriminator() -> PatchGAN:
    return PatchGAN(channels=32, layers=2).initialise(generator(0, "discriminator"))


def test_one_logit_a_patch() -> None:
    images = torch.rand(2, 3, 48, 48, generator=generator(0))
    assert discriminator()(images).shape == (2, 1, 10, 10)
    assert PatchGAN()(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_middle_grey_is_the_zero_of_its_input() -> None:
    net, grey = discriminator(), torch.full((1, 3, 48, 48), 0.5)
    assert torch.equal(net.layers[0](grey * 2 - 1), torch.zeros(1, 32, 24, 24))
    assert torch.equal(net(grey), torch.zeros(1, 1, 10, 10))


def test_each_image_is_seen_alone() -> None:
    images = torch.rand(4, 3, 48, 48, generator=generator(0))
    with torch.no_grad():
        torch.testing.assert_close(discriminator()(images)[:1], discriminator()(images[:1]))


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_a_patch_only_and_passes_a_gradient_to_it(layers: int, side: int) -> None:
    net = PatchGAN(channels=8, layers=layers).initialise(generator(0))
    for module in net.layers:
        if isinstance(module, torch.nn.GroupNorm):  # normalisation mixes places; without it the patch is exact
            module.register_forward_hook(lambda _, inputs, __: inputs[0])
    image = torch.rand(1, 3, 256, 256, generator=generator(0), requires_grad=True)
    logits = net(image)[0, 0]
    logits[len(logits) // 2, len(logits) // 2].backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [side, side]


def test_it_learns_to_tell_two_textures_apart() -> None:
    net, textures = discriminator(), generator(0, "textures")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.9))
    for _ in range(12):
        smooth = torch.rand(8, 3, 1, 1, generator=textures).expand(8, 3, 48, 48)
        rough = smooth + 0.2 * torch.randn(8, 3, 48, 48, generator=textures)
        gap = net(smooth).mean() - net(rough).mean()
        optimizer.zero_grad()
        (-gap).backward()
        optimizer.step()
    assert gap.item() > 0.5


def test_weights_are_a_function_of_the_generator() -> None:
    states = [PatchGAN(8, 1).initialise(generator(seed)).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["layers.0.weight"], states[2]["layers.0.weight"])


def test_impossible_sizes_are_refused() -> None:
    for arguments in ({"layers": 0}, {"channels": 0}, {"channels": 12}):
        with pytest.raises(RankEError, match="PatchGAN"):
            PatchGAN(**arguments)
