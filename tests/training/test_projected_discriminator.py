"""The projected discriminator: features as their own libraries compute them, trainable heads, a gradient to pixels.

The frozen networks are tiny or random, in the published formats: a transformers folder and a timm file.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rank_e.errors import RankEError
from rank_e.objectives.rank_gan import hinge_discriminator_loss, rank_gan_loss
from rank_e.seeds import generator
from rank_e.training.decoder_update import DecoderUpdate, Nets
from rank_e.training.discriminator_update import Discriminator
from rank_e.training.projected_discriminator import ProjectedDiscriminator
from rank_e.training.ranked_images import RankedImages
from tests.helpers.discriminator_files import NAME, frozen_networks
from tests.helpers.tiny_nets import decoder_params, moved, snapshot, tiny_tokenizer

SIZE = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return frozen_networks(tmp_path_factory.mktemp("frozen"))


def discriminator(files: tuple[Path, Path], seed: int = 0, **options: object) -> ProjectedDiscriminator:
    settings = {"image_size": SIZE, "channels": 16} | options
    return ProjectedDiscriminator(*files, **settings).initialise(generator(seed, "discriminator"))  # type: ignore[arg-type]


def seeded_images(count: int, side: int = SIZE, name: str = "images") -> Tensor:
    return torch.rand(count, 3, side, side, generator=generator(0, name))


def test_one_channel_a_head_and_one_logit_for_32_pixels(files):
    net: Discriminator = discriminator(files)
    assert net(seeded_images(2)).shape == (2, 8, 2, 2)
    assert net(seeded_images(2, 96)).shape == (2, 8, 2, 2)  # resized
    assert discriminator(files, image_size=96)(seeded_images(1, 96)).shape == (1, 8, 3, 3)


def test_transformer_maps_are_transformers_own_behind_its_own_processor(files):
    from transformers import DINOv3ViTImageProcessor, DINOv3ViTModel

    bytes_ = (seeded_images(2) * 255).to(torch.uint8)
    inputs = DINOv3ViTImageProcessor(do_resize=False)(list(bytes_), return_tensors="pt")
    model = DINOv3ViTModel.from_pretrained(files[0], local_files_only=True)
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
        maps = discriminator(files).features(bytes_ / 255)[:4]
        for found, state in zip(maps, [states[i] for i in (2, 4, 6, 8)], strict=True):
            expected = model.norm(state)[:, 5:]  # one class token, four registers
            torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, atol=1e-4, rtol=1e-4)


def test_efficientnet_maps_are_timms_own(files):
    import timm

    images = seeded_images(2)
    reference = timm.create_model(NAME, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    wanted = reference.state_dict().keys()
    weights = torch.load(files[1], weights_only=True)
    reference.load_state_dict({name: weights[name] for name in wanted})
    net = discriminator(files)
    with torch.no_grad():
        expected = reference((images - 0.5) / 0.5)  # this port's mean and std are 0.5
        for found, map_ in zip(net._frozen[1](images), expected, strict=True):
            torch.testing.assert_close(found, map_)


def test_mixing_is_a_constant_and_goes_from_coarse_to_fine(files):
    first, second = discriminator(files)._frozen[2], discriminator(files, seed=1)._frozen[2]
    maps = [
        torch.randn(1, c, s, s, generator=generator(0, "map", s)) for c, s in ((24, 16), (40, 8), (112, 4), (320, 2))
    ]
    mixed = first(maps)
    assert [tuple(x.shape) for x in mixed] == [(1, 64, s, s) for s in (16, 8, 4, 2)]
    for a, b in zip(mixed, second(maps), strict=True):
        assert torch.equal(a, b)
        assert 0.3 < a.std() < 3  # the random weights keep the scale
    coarse = first([*maps[:3], maps[3] + 1])
    fine = first([maps[0] + 1, *maps[1:]])
    assert all(not torch.equal(a, b) for a, b in zip(mixed, coarse, strict=True))
    assert [torch.equal(a, b) for a, b in zip(mixed, fine, strict=True)] == [False, True, True, True]


def test_resizing_looks_at_every_pixel(files):
    image = seeded_images(1, 4 * SIZE).requires_grad_()
    discriminator(files)(image).sum().backward()
    assert image.grad is not None  # without antialiasing, three of four pixels would have none
    assert (image.grad.abs().sum(1) > 0).float().mean() > 0.99


def test_parameters_and_state_are_the_heads_alone(files):
    net = discriminator(files)
    names = {name for name, _ in net.named_parameters()}
    assert names and all(name.startswith("heads.") for name in net.state_dict())
    assert names <= net.state_dict().keys()
    net.train().requires_grad_(True)
    for frozen in net._frozen:
        assert not any(module.training for module in frozen.modules())
        assert not any(p.requires_grad for p in frozen.parameters())


def test_a_gradient_reaches_the_image_through_every_head(files):
    net = discriminator(files).requires_grad_(False)
    for head in range(8):
        image = seeded_images(1).requires_grad_()
        net(image)[:, head].sum().backward()
        assert image.grad is not None and bool(image.grad.isfinite().all())
        assert image.grad.abs().sum() > 0, head


def test_the_rank_gan_loss_teaches_a_decoders_first_layer(files):
    net = discriminator(files).requires_grad_(False)
    first = nn.Conv2d(4, 8, 3, padding=1)
    decoder = nn.Sequential(first, nn.SiLU(), nn.Upsample(scale_factor=8), nn.Conv2d(8, 3, 1))
    codes = torch.randn(2, 4, 8, 8, generator=generator(0, "codes"))
    rank_gan_loss(net(decoder(codes)), torch.tensor([1.5, 0.5])).backward()
    gradient = first.weight.grad
    assert gradient is not None and bool(gradient.isfinite().all()) and gradient.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())


def no_reward(images: Tensor, prompts: list[str]) -> Tensor:
    return images.flatten(1).mean(1) * 0


def test_it_serves_the_decoder_update_as_it_is(files):
    random = generator(0, "update")
    tokens = torch.randint(16, (2, 4, 4), generator=random)
    data = RankedImages(tokens, torch.ones(2, 4), ["a", "b"], torch.rand(4, 3, 8, 8, generator=random))
    net = discriminator(files)
    nets = Nets(tiny_tokenizer(), tiny_tokenizer(), net, no_reward, lambda a, b: (a - b).square().mean())  # type: ignore[arg-type]
    update = DecoderUpdate(nets, data, decoder_params(), seed=0, round_id=1, steps_before=0)
    frozen = [snapshot(network) for network in net._frozen]
    heads = snapshot(net)
    update.step(-1)
    metrics = update.step(0)
    trained = {name for name, _ in net.named_parameters()}
    assert trained <= moved(heads, net) and metrics["weight_gan"] > 0
    assert all(not moved(before, network) for before, network in zip(frozen, net._frozen, strict=True))


def test_each_image_is_seen_alone(files):
    net, images = discriminator(files).eval(), seeded_images(3)
    with torch.no_grad():
        torch.testing.assert_close(net(images)[:1], net(images[:1]), atol=1e-5, rtol=1e-4)


def test_it_learns_to_tell_two_textures_apart(files):
    net, random = discriminator(files), generator(0, "textures")
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(30):
        smooth = torch.rand(4, 3, 1, 1, generator=random).expand(4, 3, SIZE, SIZE)
        rough = smooth + 0.2 * torch.randn(4, 3, SIZE, SIZE, generator=random)
        real, fake = net(smooth), net(rough)
        optimizer.zero_grad()
        hinge_discriminator_loss(real, fake).backward()
        optimizer.step()
    gaps = (real - fake).mean((0, 2, 3))
    assert gaps.mean() > 0.3 and bool((gaps > 0.05).all())  # every head has learned


def test_weights_are_a_function_of_the_generator_and_have_unit_spectral_norms(files):
    states: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(states))  # the global state plays no part
        states.append(discriminator(files, seed).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    name = "heads.0.layers.0.parametrizations.weight.original"
    assert not torch.equal(states[0][name], states[2][name])
    net = discriminator(files).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            largest = torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)
            assert 0.99 < largest < 1.15


def test_a_saved_state_gives_the_same_logits(files):
    first, second, images = discriminator(files, 0), discriminator(files, 1), seeded_images(2)
    first.train()  # a step turns the spectral norms' vectors
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


def test_a_step_turns_the_spectral_norms_once_and_its_passes_see_the_same_weights(files):
    net, images = discriminator(files), seeded_images(2)
    name = "heads.0.layers.0.parametrizations.weight.0._u"
    with torch.no_grad():
        net.heads[0].layers[0].parametrizations.weight.original.normal_(generator=generator(0, "another weight"))
    before, vector = net(images), net.state_dict()[name].clone()
    assert torch.equal(net(images), before) and torch.equal(net.state_dict()[name], vector)
    after = net.train()(images)
    assert not torch.equal(net.state_dict()[name], vector) and not torch.equal(after, before)


def test_moving_it_moves_the_frozen_networks(files):
    assert discriminator(files).double()(seeded_images(1)).dtype == torch.float64


def broken(folder: Path, source: Path, change) -> Path:
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_dinov3_folder_that_is_none_is_named(files, tmp_path):
    good, efficientnet = files
    with pytest.raises(RankEError, match=r"config\.json does not exist"):
        discriminator((tmp_path / "nowhere", efficientnet))
    missing = broken(tmp_path / "missing", good, lambda t: t.pop("layer.1.mlp.up_proj.weight"))
    with pytest.raises(RankEError, match=r"missing_keys.*layer\.1\.mlp\.up_proj\.weight"):
        discriminator((missing, efficientnet))
    narrow = broken(tmp_path / "narrow", good, lambda t: t.update({"norm.weight": torch.ones(31)}))
    with pytest.raises(RankEError, match="dinov3"):
        discriminator((narrow, efficientnet))
    (narrow / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(RankEError, match="dinov3: cannot load") as caught:
        discriminator((narrow, efficientnet))
    assert "\n" not in str(caught.value)
    (narrow / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(RankEError, match="'dinov2'"):
        discriminator((narrow, efficientnet))
    (narrow / "config.json").write_text("{")
    with pytest.raises(RankEError, match="not a transformers config"):
        discriminator((narrow, efficientnet))


def test_an_efficientnet_file_that_is_none_is_named(files, tmp_path):
    dinov3, good = files
    with pytest.raises(RankEError, match=r"none\.pth"):
        discriminator((dinov3, tmp_path / "none.pth"))
    weights = torch.load(good, weights_only=True)
    weights["conv_extra"] = weights.pop("conv_stem.weight")
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(RankEError, match=r"odd\.pth.*conv_stem\.weight.*conv_extra"):
        discriminator((dinov3, tmp_path / "odd.pth"))
    for name in ("efficientnet_b99", "resnet18"):
        with pytest.raises(RankEError, match=f"efficientnet_name: .*{name}"):
            discriminator(files, efficientnet_name=name)


def test_files_without_step_counts_of_the_batch_norms_load(files, tmp_path):
    weights = torch.load(files[1], weights_only=True)
    slim = {name: weight for name, weight in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(slim) < len(weights)
    torch.save(slim, tmp_path / "slim.pth")
    images = seeded_images(1)
    assert torch.equal(discriminator((files[0], tmp_path / "slim.pth"))(images), discriminator(files)(images))


def test_impossible_sizes_are_refused(files):
    for options in ({"image_size": 100}, {"image_size": 0}, {"channels": 12}):
        with pytest.raises(RankEError, match="ProjectedDiscriminator"):
            discriminator(files, **options)
