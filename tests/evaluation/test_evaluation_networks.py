"""Judges' networks and resizing against clean-fid's, transformers', open_clip's and torchvision's own code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import nn

from rank_e.errors import RankEError
from rank_e.evaluation.base import EvaluationError, as_bytes
from rank_e.evaluation.features import dinov2_features, inception_features
from rank_e.evaluation.networks import load_clip
from rank_e.evaluation.resize import clip_bicubic, square_lanczos
from rank_e.evaluation.scores import ClipScore, RewardScore
from rank_e.evaluation.suite import build_judges
from rank_e.io.torchvision_ops import declare_torchvision_ops, import_open_clip
from rank_e.seeds import generator
from tests.helpers.sections import distances, scores

CPU = torch.device("cpu")
SIZES = [(300, 401), (97, 80), (256, 256)]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def image(height: int, width: int, name: str = "image") -> torch.Tensor:
    """A smooth coloured image with noise on top, uint8 [3, H, W]."""
    draw = generator(0, name, height, width)
    coarse = torch.rand(1, 3, 7, 5, generator=draw)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return as_bytes(smooth + 0.1 * torch.randn(3, height, width, generator=draw))


IMAGES = [image(*size) for size in SIZES]


def pil(value: torch.Tensor) -> Image.Image:
    return Image.fromarray(value.permute(1, 2, 0).numpy())


def published_square(array: np.ndarray) -> np.ndarray:
    """torchvision's centre crop of the long edge, then PIL's Lanczos."""
    from torchvision.transforms.functional import center_crop

    image = Image.fromarray(array)
    return np.array(center_crop(image, min(image.size)).resize((256, 256), Image.Resampling.LANCZOS))


class Archive(nn.Module):
    """What NVIDIA's archive looks like from outside: `layers` give 2048 numbers of a normalised image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2048, 16, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.pt"
    torch.manual_seed(0)
    torch.jit.script(Archive()).save(str(path))
    return path


@pytest.fixture(scope="module")
def clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny CLIP with QuickGELU, and its twin without, in open_clip's list of architectures."""
    folder = tmp_path_factory.mktemp("configs")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-judge.json").write_text(json.dumps(config))
    (folder / "tiny-judge-quickgelu.json").write_text(json.dumps(config | {"quick_gelu": True}))
    import_open_clip().add_model_config(folder)
    return "tiny-judge-quickgelu"


@pytest.fixture(scope="module")
def clip_file(clip_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    open_clip = import_open_clip()
    torch.manual_seed(1)
    model = open_clip.CLIP(**open_clip.get_model_config(clip_name))
    path = tmp_path_factory.mktemp("clip") / "open_clip_pytorch_model.bin"
    torch.save(model.state_dict(), path)
    return path


def test_inception_archive_gives_clean_fids_features_of_a_folder(archive: Path, tmp_path: Path) -> None:
    declare_torchvision_ops()
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    for place, value in enumerate(IMAGES):
        pil(value).save(tmp_path / f"{place}.png")
    theirs = get_folder_features(
        str(tmp_path),
        InceptionV3W(str(archive.parent), download=False),
        num_workers=0,
        device=CPU,
        verbose=False,
        custom_image_tranform=published_square,
    )
    ours = inception_features(archive.parent, CPU, file=archive.name, image_size=256)
    torch.testing.assert_close(ours(IMAGES), torch.from_numpy(theirs), rtol=1e-4, atol=1e-5)
    assert len(ours.source) == 64 and "256 px" in ours.protocol
    small = inception_features(archive.parent, CPU, file=archive.name, image_size=64)
    assert (small(IMAGES) - ours(IMAGES)).abs().max() > 1e-3 and small.protocol != ours.protocol


@pytest.mark.filterwarnings("ignore:.*pretrained.*", "ignore:Arguments other than")
def test_inception_state_dict_gives_clean_fids_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare_torchvision_ops()
    from cleanfid import inception_pytorch
    from torchvision.models import inception_v3

    from rank_e.evaluation.networks import load_inception

    shapes = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    draw, state = generator(0, "inception"), {}
    for name, value in shapes.items():
        if value.ndim > 1:  # He's scale, so that features do not vanish on the way
            state[name] = torch.randn(value.shape, generator=draw) * (2 / value[0].numel()) ** 0.5
        elif not name.endswith("num_batches_tracked"):  # absent from the published file
            state[name] = 0.5 + torch.rand(value.shape, generator=draw)
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(state, path)
    ours, _ = load_inception(path, CPU)
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: dict(state))
    theirs = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False, normalize_input=False).eval()
    x = torch.rand(2, 3, 299, 299, generator=draw) * 255
    expected = theirs((x - 128) / 128)[0].flatten(1)
    assert expected.shape == (2, 2048) and expected.std() > 1e-3
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))

    del state["Mixed_7c.branch1x1.conv.weight"]
    torch.save(state, path)
    with pytest.raises(RankEError, match=r"1 missing: Mixed_7c\.branch1x1\.conv\.weight") as error:
        load_inception(path, CPU)
    assert "\n" not in str(error.value)


def test_dinov2_gives_transformers_class_token(tmp_path: Path) -> None:
    declare_torchvision_ops()
    from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(2)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    prepare = Compose(
        [
            Resize((224, 224), InterpolationMode.BICUBIC),
            ToTensor(),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    squares = [Image.fromarray(published_square(np.array(pil(value)))) for value in IMAGES]
    with torch.no_grad():
        expected = model(torch.stack([prepare(square) for square in squares])).pooler_output
    torch.testing.assert_close(
        dinov2_features(tmp_path, CPU, file=".", image_size=256)(IMAGES), expected, rtol=1e-4, atol=1e-5
    )

    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    state = load(whole)
    for name, broken, message in (
        ("missing", {k: v for k, v in state.items() if k != "layernorm.weight"}, r"missing_keys layernorm\.weight"),
        ("unexpected", state | {"head.weight": torch.zeros(1)}, r"unexpected_keys head\.weight"),
        ("shape", state | {"layernorm.weight": torch.zeros(5)}, r"layernorm\.weight|size mismatch|mismatched"),
    ):
        weights.write_bytes(save(broken, metadata={"format": "pt"}))
        with pytest.raises(EvaluationError, match=message) as error:
            dinov2_features(tmp_path, CPU, file=".", image_size=256)
        assert "\n" not in str(error.value), name
    weights.write_bytes(whole[:-100])
    with pytest.raises(RankEError, match="truncated"):
        dinov2_features(tmp_path, CPU, file=".", image_size=256)
    weights.unlink()
    with pytest.raises(EvaluationError, match="holds none of"):
        dinov2_features(tmp_path, CPU, file=".", image_size=256)
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(EvaluationError, match="of a 'vit'"):
        dinov2_features(tmp_path, CPU, file=".", image_size=256)


def test_clip_features_and_score_follow_the_published_code(clip_name: str, clip_file: Path) -> None:
    open_clip = import_open_clip()
    model = open_clip.CLIP(**open_clip.get_model_config(clip_name)).eval()
    model.load_state_dict(torch.load(clip_file, weights_only=True))
    prepare = open_clip.image_transform(32, is_train=False, mean=MEAN, std=STD)
    inputs = torch.stack([prepare(Image.fromarray(published_square(np.array(pil(p))))) for p in IMAGES])
    prompts = ["a red cube on a table", "word " * 90, "two dogs"]
    judges = build_judges(
        distances({"fd_clip": {"kind": "clip_features", "file": clip_file.name, "model": clip_name}}),
        scores({"clip": {"kind": "clip_score", "file": clip_file.name, "model": clip_name}}),
        clip_file.parent,
        CPU,
    )
    # The published evaluation inserts the prefix's three tokens after the start, and ends row 77 if it is full.
    tokens = open_clip.tokenize(prompts)
    prefix = open_clip.tokenize(["A photo depicts "])[:, 1:4].expand(3, -1)
    tokens = torch.cat([tokens[:, :1], prefix, tokens[:, 1:]], 1)[:, :77]
    tokens[:, 76][tokens[:, 76] > 0] = 49407
    with torch.no_grad():
        images, texts = model.encode_image(inputs), model.encode_text(tokens)
    torch.testing.assert_close(judges.features["fd_clip"](IMAGES), images, rtol=1e-4, atol=1e-5)
    expected = 100 * nn.functional.cosine_similarity(images, texts)
    found = judges.scores["clip"](IMAGES, prompts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    plain = 100 * nn.functional.cosine_similarity(images, model.encode_text(open_clip.tokenize(prompts)))
    assert (found - plain).abs().max() > 0.01  # the prefix matters
    with pytest.raises(EvaluationError, match="3 images for 2 prompts"):
        judges.scores["clip"](IMAGES, prompts[:2])


def test_openai_archive_is_read_and_wants_quickgelu(clip_name: str, clip_file: Path, tmp_path: Path) -> None:
    class OpenAi(nn.Module):
        """An archive whose state is the model's, with OpenAI's sizes beside it."""

        def __init__(self) -> None:
            super().__init__()
            for name, value in torch.load(clip_file, weights_only=True).items():
                owner: nn.Module = self
                *path, leaf = name.split(".")
                for part in path:
                    if part not in dict(owner.named_children()):
                        owner.add_module(part, nn.Module())
                    owner = owner.get_submodule(part)
                owner.register_buffer(leaf, value.half())
            self.register_buffer("input_resolution", torch.tensor(32))
            self.register_buffer("context_length", torch.tensor(77))
            self.register_buffer("vocab_size", torch.tensor(49408))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    path = tmp_path / "tiny.pt"
    torch.jit.trace(OpenAi(), torch.zeros(1)).save(str(path))
    model, tokenize, source = load_clip(path, clip_name, CPU)
    expected, _, _ = load_clip(clip_file, clip_name, CPU)
    assert model.visual.proj.dtype == torch.float32 and len(source) == 64 and tokenize(["a"]).shape == (1, 77)
    torch.testing.assert_close(model.visual.proj, expected.visual.proj, rtol=1e-3, atol=1e-4)
    with pytest.raises(EvaluationError, match="tiny-judge-quickgelu"):
        load_clip(path, "tiny-judge", CPU)


@pytest.mark.parametrize("size", [*SIZES, (33, 1024)])
def test_squares_and_clip_sizes_are_torchvisions(size: tuple[int, int]) -> None:
    declare_torchvision_ops()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    value = image(*size)
    theirs = published_square(np.array(pil(value)))
    assert np.array_equal(square_lanczos(value).permute(1, 2, 0).numpy(), theirs)
    clip = Compose([Resize(64, InterpolationMode.BICUBIC), CenterCrop(64)])(pil(value))
    assert np.array_equal((clip_bicubic(value, 64) * 255).round().permute(1, 2, 0).byte().numpy(), np.array(clip))


def test_bytes_are_rounded_and_checked() -> None:
    assert as_bytes(torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.501 / 255, 1.0, 2.0])).tolist() == [0, 0, 0, 1, 255, 255]
    with pytest.raises(EvaluationError, match="NaN"):
        as_bytes(torch.tensor([float("nan")]))
    with pytest.raises(EvaluationError, match="int64"):
        as_bytes(torch.tensor([1]))


def test_a_reward_is_a_judge_and_must_be_finite() -> None:
    def red(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images[:, 0].mean((1, 2)) / (images[:, 1].mean((1, 2)) > 0)

    score = RewardScore(red, name="red", source="0" * 64, device=CPU)
    values = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    values[0, 0], values[:, 1] = 255, 1
    assert score(values, ["a", "b"]).tolist() == [1.0, 0.0]
    values[1] = 0
    with pytest.raises(EvaluationError, match="image 1 is not finite"):
        score(values, ["a", "b"])
    with pytest.raises(EvaluationError, match="2 sizes"):
        score([values[0], values[1, :, :2]], ["a", "b"])


def test_bad_settings_and_files_are_named_in_one_line(clip_name: str, clip_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "inception-2015-12-05.pt"
    broken.write_bytes(clip_file.read_bytes()[:1000])
    good = {"kind": "clip_score", "file": str(clip_file), "model": clip_name}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "inception", "file": "no.pt"}, r"evaluation\.distances\.x: .*no\.pt does not exist"),
        ({"kind": "inception", "file": str(broken)}, "inception-2015-12-05.pt is truncated"),
        ({"kind": "inception", "file": str(clip_file)}, "open_clip_pytorch_model.bin does not fit"),
        ({"kind": "dinov2", "file": str(tmp_path)}, r"config\.json does not exist"),
        (good | {"model": "no-such-clip"}, "no-such-clip"),
        (good | {"model": "no.json"}, rf"{tmp_path}/no\.json does not exist"),
        (good | {"model": "ViT-S-32"}, "does not fit the model"),
    ]
    for options, message in cases:
        with pytest.raises(RankEError, match=message) as error:
            if options["kind"] == "clip_score":
                build_judges({}, scores({"x": options}), tmp_path, CPU)
            else:
                build_judges(distances({"x": options}), {}, tmp_path, CPU)
        assert "\n" not in str(error.value)


def test_images_of_another_kind_are_refused(archive: Path) -> None:
    judge = inception_features(archive.parent, CPU, file=archive.name, image_size=256)
    with pytest.raises(EvaluationError, match="no images"):
        judge([])
    with pytest.raises(EvaluationError, match=r"image 1 is torch\.float32"):
        judge([IMAGES[0], IMAGES[0].float()])


def test_clip_score_refuses_a_model_that_is_not_square(clip_name: str, clip_file: Path) -> None:
    model, tokenize, source = load_clip(clip_file, clip_name, CPU)
    model.visual.image_size = (32, 48)
    with pytest.raises(RankEError, match="not square"):
        ClipScore(model, tokenize, name="tiny", source=source)
