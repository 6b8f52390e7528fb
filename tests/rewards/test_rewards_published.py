"""Published rewards from seeded toy checkpoints in the official layouts: same scores as the official preprocessing on
Pillow images and as upstream's own ImageReward, and a gradient down to a decoder's first layer from each.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rank_e.io.pixels import from_signed
from rank_e.io.torchvision_ops import declare_torchvision_ops, import_open_clip
from rank_e.rewards import preprocessing
from rank_e.rewards.base import Reward, RewardError
from rank_e.rewards.imagereward import build_networks, load_word_pieces
from rank_e.rewards.mixture import build_rewards
from rank_e.rewards.open_clip_models import load_clip
from rank_e.rewards.preprocessing import OPENAI_MEAN, OPENAI_STD, clip_protocol, hps_protocol
from rank_e.rewards.weights import read_weights
from tests.helpers.imagereward_files import GOLDEN, draw, write_imagereward
from tests.helpers.sections import rewards
from tests.helpers.tiny_nets import tiny_tokenizer

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PROMPTS = ["a red dog on the grass", "two dogs", "a red dog on the grass"]
KINDS = ["clip", "hpsv2", "aesthetic_linear", "aesthetic_mlp", "aesthetic_relu", "imagereward"]
MLP_WIDTHS = [32, 1024, 128, 64, 16, 1]


def pixels(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, shape).astype("uint8"))


def reference_clip() -> Any:
    torch.manual_seed(5)
    model: nn.Module = import_open_clip().CLIP(**TINY_CLIP)
    return model.eval().requires_grad_(False)


def mlp(relu: bool) -> nn.Sequential:
    """The published head as its authors wrote it down: dropouts, and in one file ReLUs, take up numbers."""
    layers: list[nn.Module] = []
    for i, dropout in enumerate((0.2, 0.2, 0.1, None, None)):
        layers.append(nn.Linear(MLP_WIDTHS[i], MLP_WIDTHS[i + 1]))
        if relu and i < 4:
            layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every checkpoint in the layout that its authors published."""
    declare_torchvision_ops()
    base = tmp_path_factory.mktemp("rewards")
    (base / "clip.json").write_text(json.dumps(TINY_CLIP))
    state = reference_clip().state_dict()
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, base / "HPS_v2.1.pt")
    save_file({k: v.clone() for k, v in state.items()}, base / "clip.safetensors")
    heads = {"linear": nn.Linear(32, 1), "mlpFalse": mlp(relu=False), "mlpTrue": mlp(relu=True)}
    for name, head in heads.items():
        prefix = "" if name == "linear" else "layers."
        torch.save(
            {prefix + k: draw(name + k, list(v.shape)) for k, v in head.state_dict().items()}, base / f"{name}.pth"
        )
    write_imagereward(base)
    return base


def section(folder: Path, kind: str) -> dict[str, Any]:
    clip = {"model": str(folder / "clip.json")}
    head = {"kind": "aesthetic", "clip_file": str(folder / "clip.safetensors")} | clip
    return {
        "clip": {"kind": "clip", "file": str(folder / "clip.safetensors")} | clip,
        "hpsv2": {"kind": "hpsv2", "file": str(folder / "HPS_v2.1.pt")} | clip,
        "aesthetic_linear": head | {"file": str(folder / "linear.pth")},
        "aesthetic_mlp": head | {"file": str(folder / "mlpFalse.pth")},
        "aesthetic_relu": head | {"file": str(folder / "mlpTrue.pth")},
        "imagereward": {"kind": "imagereward", "file": str(folder / "ImageReward.pt"), "tokenizer": str(folder)},
    }[kind]


def build(folder: Path, kind: str) -> Reward:
    return build_rewards(rewards({kind: section(folder, kind)}), Path(), "cpu")


def pillow_inputs(images: Tensor, size: int) -> Tensor:
    """The published preparation of CLIP, the aesthetic predictors and ImageReward, on Pillow images."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    prepare = Compose(
        [Resize(size, InterpolationMode.BICUBIC), CenterCrop(size), ToTensor(), Normalize(OPENAI_MEAN, OPENAI_STD)]
    )
    return torch.stack([prepare(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in images])


def hps_inputs(images: Tensor, size: int) -> Tensor:
    """HPSv2's published preparation: float tensors, longer side resized, black bars."""
    from torchvision.transforms import InterpolationMode, Normalize
    from torchvision.transforms import functional as TF

    done = []
    for image in images / 255:
        height, width = image.shape[1:]
        scale = size / max(height, width)
        new = (round(height * scale), round(width * scale))
        resized = TF.resize(image, list(new), InterpolationMode.BICUBIC, antialias=True)
        down, right = size - new[0], size - new[1]
        padded = TF.pad(resized, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
        done.append(Normalize(OPENAI_MEAN, OPENAI_STD)(padded))
    return torch.stack(done)


def official_scores(folder: Path, kind: str, images: Tensor) -> Tensor:
    """Scores as the published code computes them, from its own preparation of 8-bit images."""
    if kind == "imagereward":
        vision, text, head = build_networks("reference", read_weights(folder / "ImageReward.pt"))
        rows = load_word_pieces(folder, 16).encode_batch(PROMPTS)
        ids, mask = torch.tensor([r.ids for r in rows]), torch.tensor([r.attention_mask for r in rows])
        seen = vision(pillow_inputs(images, 32))
        hidden = text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return (head(hidden[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072
    model = reference_clip()
    inputs = (hps_inputs if kind == "hpsv2" else pillow_inputs)(images, 32)
    image = F.normalize(model.encode_image(inputs), dim=-1)
    if kind in ("clip", "hpsv2"):
        text_features = F.normalize(model.encode_text(import_open_clip().SimpleTokenizer()(PROMPTS)), dim=-1)
        return (image * text_features).sum(-1) * (100 if kind == "clip" else 1)
    if kind == "aesthetic_linear":
        official: nn.Module = nn.Linear(32, 1)
        official.load_state_dict(torch.load(folder / "linear.pth", weights_only=True))
    else:
        official = mlp(relu=kind == "aesthetic_relu")
        stored = torch.load(folder / f"mlp{kind == 'aesthetic_relu'}.pth", weights_only=True)
        official.load_state_dict({k.removeprefix("layers."): v for k, v in stored.items()})
    return official(image)[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (48, 48), (24, 24), (45, 61), (61, 40)])
def test_scores_are_those_of_the_official_preprocessing(folder: Path, kind: str, shape: tuple[int, int]) -> None:
    images = pixels(3, 3, 3, *shape)
    scores = build(folder, kind)(images / 255, PROMPTS)
    official = official_scores(folder, kind, images)
    assert official.std() > 2e-3  # the images differ in score, so the comparison says something
    torch.testing.assert_close(scores, official, rtol=0, atol=1e-2)
    if shape == (32, 32) or kind == "hpsv2":  # nothing is resized, or nothing is rounded to 8 bits
        torch.testing.assert_close(scores, official, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(256, 256), (384, 384), (512, 512), (200, 301), (337, 224), (512, 301)])
def test_inputs_are_those_of_pillow_and_torchvision(shape: tuple[int, int]) -> None:
    noise = pixels(4, 2, 3, *shape)
    ours = clip_protocol(noise / 255, 224, OPENAI_MEAN, OPENAI_STD)
    difference = (ours - pillow_inputs(noise, 224)).abs() * 0.2686 * 255  # in 8-bit steps
    assert ours.shape == (2, 3, 224, 224)
    assert (
        difference.max() < 1.1 and difference.mean() < 0.01
    )  # Pillow's fixed-point sums sometimes round the other way
    padded = hps_protocol(noise / 255, 224, OPENAI_MEAN, OPENAI_STD)
    torch.testing.assert_close(padded, hps_inputs(noise, 224), rtol=0, atol=1e-5)


def test_values_beyond_the_range_score_as_they_would_in_a_file_but_keep_their_gradient(folder: Path) -> None:
    reward = build(folder, "clip")
    bright = (pixels(5, 3, 3, 32, 32) / 255 * 1.6 - 0.3).requires_grad_()
    scores = reward(bright, PROMPTS)
    torch.testing.assert_close(scores, reward(bright.detach().clamp(0, 1), PROMPTS))
    (gradient,) = torch.autograd.grad(scores.sum(), bright)
    assert (gradient[bright > 1] != 0).all() and (gradient[bright < 0] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_finite_gradient_reaches_the_decoders_first_layer(folder: Path, kind: str) -> None:
    tokenizer = tiny_tokenizer()
    tokens = torch.arange(12).view(3, 4)
    images = from_signed(tokenizer.decode_tokens(tokens))
    first = tokenizer.post_quant_conv.weight
    (gradient,) = torch.autograd.grad(build(folder, kind)(images, PROMPTS).sum(), first)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_slope_of_the_score(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = build(folder, kind)
    # Smooth and away from black and white, so that only rounding, not cutting off, stands in the way of a slope.
    images = F.interpolate(pixels(6, 3, 3, 4, 4) / 255 * 0.4 + 0.3, 48, mode="bilinear").requires_grad_()
    (rounded,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
    monkeypatch.setattr(preprocessing, "round_to_levels", lambda scaled: scaled)
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
    assert F.cosine_similarity(rounded.flatten(1), gradient.flatten(1)).min() > 0.99
    step = 0.02 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    slope = (reward(images + step, PROMPTS) - reward(images - step, PROMPTS)) / 0.04
    torch.testing.assert_close(slope, gradient.flatten(1).norm(dim=1), rtol=0.05, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_its_batch(folder: Path, kind: str) -> None:
    reward, images = build(folder, kind), pixels(7, 3, 3, 40, 40) / 255
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(reward(images, PROMPTS), alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_imagereward_is_upstreams(folder: Path) -> None:
    reward = build(folder, "imagereward")
    prompts = GOLDEN["prompts"]
    exact = reward(pixels(1, 3, 3, 32, 32) / 255, prompts)
    torch.testing.assert_close(exact, torch.tensor(GOLDEN["scores"]), rtol=0, atol=1e-4)
    resized = reward(pixels(0, 3, 3, 45, 61) / 255, prompts)
    torch.testing.assert_close(resized, torch.tensor(GOLDEN["resized_scores"]), rtol=0, atol=1e-2)
    ids = [row.ids for row in load_word_pieces(folder / "vocab.txt", 16).encode_batch(prompts)]
    assert ids == GOLDEN["ids"]


def test_imagereward_takes_every_key_of_the_published_size() -> None:
    full = {key: torch.zeros(()).expand(shape) for key, shape in GOLDEN["full"].items() if key[:4] == "blip"}
    head = {key: torch.zeros(shape) for key, shape in GOLDEN["full"].items() if key[:4] == "mlp."}
    vision, text, _ = build_networks("ImageReward.pt", full | head)
    assert vision.patch_embed.img_size == (224, 224) and len(vision.blocks) == 24
    assert vision.blocks[0].attn.num_heads == 16 and text.config.num_attention_heads == 12
    without = {k: v for k, v in full.items() if k != "blip.text_encoder.encoder.layer.11.crossattention.self.key.bias"}
    with pytest.raises(RewardError, match=r"blip\.text_encoder.*1 missing: encoder\.layer\.11\.crossattention\.self"):
        build_networks("ImageReward.pt", without | head)
    with pytest.raises(RewardError, match=r"unexpected key blip\.queue"):
        build_networks("ImageReward.pt", full | head | {"blip.queue": torch.zeros(1)})


def test_openai_archives_are_read(folder: Path, tmp_path: Path) -> None:
    class Archive(nn.Module):
        """Weights in half precision under the network's names, beside OpenAI's three notes."""

        def __init__(self) -> None:
            super().__init__()
            for key, value in reference_clip().state_dict().items():
                holder: nn.Module = self
                *path, last = key.split(".")
                for part in path:
                    if part not in dict(holder.named_children()):
                        holder.add_module(part, nn.Module())
                    holder = holder.get_submodule(part)
                holder.register_buffer(last, value.half())
            for note in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(note, torch.tensor(1))

        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.save(torch.jit.script(Archive()), str(tmp_path / "ViT-L-14.pt"))
    model, tokenize = load_clip(str(folder / "clip.json"), tmp_path / "ViT-L-14.pt", torch.device("cpu"))
    halves = {key: value.half().float() for key, value in reference_clip().state_dict().items()}
    for key, value in model.state_dict().items():
        assert torch.equal(value, halves[key]), key
    reference = reference_clip()
    reference.load_state_dict(halves)
    ids = tokenize(PROMPTS)
    torch.testing.assert_close(model.encode_text(ids), reference.encode_text(ids))  # the causal mask was rebuilt
    plain = {key: value for key, value in json.loads((folder / "clip.json").read_text()).items() if key != "quick_gelu"}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    with pytest.raises(RewardError, match=r"ViT-L-14\.pt is a TorchScript archive, .* \"quick_gelu\": true"):
        load_clip(str(tmp_path / "plain.json"), tmp_path / "ViT-L-14.pt", torch.device("cpu"))
    with pytest.raises(RewardError, match=r"wants QuickGELU; give ViT-L-14-quickgelu"):
        load_clip("ViT-L-14", tmp_path / "ViT-L-14.pt", torch.device("cpu"))


@pytest.mark.parametrize("model", ["hf-hub:laion/CLIP-ViT-H-14", "local-dir:models", "https://hub/ViT-H-14"])
def test_a_model_is_a_name_and_never_a_download(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rank_e.rewards import open_clip_models

    monkeypatch.setattr(open_clip_models, "import_open_clip", lambda: pytest.fail("open_clip must not be asked"))
    with pytest.raises(RewardError, match="is a place to download from; name the model, such as ViT-H-14"):
        open_clip_models.model_config(model)


@pytest.mark.parametrize(
    "config",
    [
        b"\xff",
        b"[]",
        b"<html>",
        b'{"embed_dim": 16, "vision_cfg": {}, "text_cfg": ["hf_model"]}',
        b'{"embed_dim": 16, "vision_cfg": {"image_size": 8, "layers": 1, "width": 30, "head_width": 16, '
        b'"patch_size": 0}, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}',
    ],
)
def test_a_config_that_is_none_is_one_line(folder: Path, tmp_path: Path, config: bytes) -> None:
    (tmp_path / "m.json").write_bytes(config)
    with pytest.raises(RewardError, match=r"model: .*m\.json") as caught:
        load_clip(str(tmp_path / "m.json"), folder / "clip.safetensors", torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["ViT-L-14-quickgelu", "ViT-H-14"])
def test_the_published_sizes_are_known(model: str) -> None:
    from rank_e.rewards.open_clip_models import model_config

    config = model_config(model)
    assert config.get("quick_gelu", False) is (model == "ViT-L-14-quickgelu")
    assert config["embed_dim"] == {"ViT-L-14-quickgelu": 768, "ViT-H-14": 1024}[model]
