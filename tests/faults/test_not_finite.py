"""A weight that is not finite is named with its file when it is loaded, not by what a network makes of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rank_e.errors import RankEError
from rank_e.evaluation.geneval.detector import Mask2FormerDetector
from rank_e.evaluation.networks import load_clip_evaluator, load_dinov2, load_inception
from rank_e.io.files import sha256_of
from rank_e.io.manifest import seal_manifest
from rank_e.rewards.aesthetic import build_head
from rank_e.rewards.imagereward import imagereward as imagereward_reward
from rank_e.rewards.open_clip_models import load_clip
from rank_e.rewards.weights import read_weights
from rank_e.shapes.backbone import load_tensors
from rank_e.training.projected_discriminator import load_dinov3, load_efficientnet
from tests.helpers.discriminator_files import NAME, frozen_networks
from tests.helpers.geneval_nets import write_clip, write_mask2former
from tests.helpers.imagereward_files import write_imagereward

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def put(path: Path, value: float) -> str:
    """Write a value into the last floating tensor of a file that has more than one number; the tensor's name."""
    official = path.suffix != ".safetensors"
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True) if official else load_file(path)
    name = [key for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 1][-1]
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)
    return name


def dinov2(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    Dinov2Model(config).save_pretrained(folder)
    return folder / "model.safetensors"


def dinov3(folder: Path) -> Path:
    return frozen_networks(folder)[0] / "model.safetensors"


def efficientnet(folder: Path) -> Path:
    return frozen_networks(folder)[1]


def imagereward(folder: Path) -> Path:
    write_imagereward(folder)
    return folder / "ImageReward.pt"


def head(folder: Path) -> Path:
    torch.save({"bias": torch.zeros(1), "weight": torch.ones(1, 8)}, folder / "head.pth")
    return folder / "head.pth"


def mask2former(folder: Path) -> Path:
    return write_mask2former(folder) / "model.safetensors"


def base(folder: Path) -> Path:
    shutil.copytree(ROOT / "assets" / "shapes", folder / "base")
    return folder / "base" / "evaluator.safetensors"


def load_base(file: Path) -> object:
    """A base that was recorded with such a number."""
    manifest = json.loads((file.parent / "base.json").read_text())
    manifest["files"][file.name] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    seal_manifest(file.parent, manifest)
    return load_tensors(file.parent, file.stem)


LOADERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "clip reward": (write_clip, lambda file: load_clip("Tiny-quickgelu", file, CPU)),
    "clip evaluator": (write_clip, lambda file: load_clip_evaluator(file, "Tiny-quickgelu", CPU)),
    "aesthetic head": (head, lambda file: build_head(str(file), read_weights(file))),
    "imagereward": (
        imagereward,
        lambda file: imagereward_reward(file.parent, CPU, file=file.name, tokenizer="vocab.txt"),
    ),
    "dinov2": (dinov2, lambda file: load_dinov2(file.parent, CPU)),
    "dinov3": (dinov3, lambda file: load_dinov3(file.parent)),
    "efficientnet": (efficientnet, lambda file: load_efficientnet(file, NAME)),
    "mask2former": (mask2former, lambda file: Mask2FormerDetector.from_folder(file.parent, CPU)),
    "embedded world": (base, load_base),
}


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_weight_that_is_not_finite_is_named_with_its_file(tmp_path: Path, kind: str, value: float) -> None:
    write, load = LOADERS[kind]
    file = write(tmp_path)
    if value < 0:  # once for each kind
        load(file)
    name = put(file, value)
    with pytest.raises(RankEError, match="holds values that are not finite in ") as caught:
        load(file)
    said = str(caught.value)
    assert "\n" not in said and str(file.parent) in said
    assert name.rpartition(".")[2] in said and said.endswith("; download it again")


def test_torchscript_is_no_exception(tmp_path: Path) -> None:
    class Archive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    archive = Archive()
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(archive).save(str(path))
    load_inception(path, CPU)
    archive.layers.weight.data[1, 1] = float("nan")
    torch.jit.script(archive).save(str(path))
    with pytest.raises(RankEError, match=rf"{path} holds values that are not finite in weight; download it again"):
        load_inception(path, CPU)
