"""Evaluators from local files: strict, in float32, in eval mode, without gradients; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rank_e.errors import listed
from rank_e.evaluation.base import EvaluationError
from rank_e.io.checkpoints import check_finite, check_shapes, read_tensors, shapes_of
from rank_e.io.json_text import parse_json
from rank_e.io.torchvision_ops import declare_torchvision_ops
from rank_e.io.verified import WEIGHTS
from rank_e.rewards.base import RewardError
from rank_e.rewards.clip import ClipModel, Tokenize
from rank_e.rewards.open_clip_models import load_clip
from rank_e.rewards.weights import is_torchscript, read_torchscript

Features = Callable[[Tensor], Tensor]
DINOV2_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def existing_file(path: str | Path) -> Path:
    """`path`, or EvaluationError if no such file exists."""
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"{path} does not exist or is not a file; put the weights there or name another")
    return path


def _frozen(module: nn.Module, state: dict[str, Tensor], device: torch.device) -> nn.Module:
    module.load_state_dict(state)
    return module.float().to(device).eval().requires_grad_(False)


def _fid_inception() -> nn.Module:
    """The FID Inception v3 with 1008 classes: torchvision's skeleton with clean-fid's patched blocks."""
    declare_torchvision_ops()  # clean-fid imports torchvision
    from cleanfid import inception_pytorch as blocks
    from torchvision.models import inception_v3

    net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for name, channels in (("5b", (192, 32)), ("5c", (256, 64)), ("5d", (288, 64))):
        setattr(net, f"Mixed_{name}", blocks.FIDInceptionA(*channels))
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(net, f"Mixed_{name}", blocks.FIDInceptionC(768, channels_7x7=width))
    net.Mixed_7b, net.Mixed_7c = blocks.FIDInceptionE_1(1280), blocks.FIDInceptionE_2(2048)
    net.fc = nn.Identity()  # features are what the classifier would read
    return net.eval()


def load_inception(file: str | Path, device: torch.device) -> tuple[Features, str]:
    """(features, sha256) of the FID Inception: float [N, 3, 299, 299] in [0, 255] -> float32 [N, 2048].

    `file` is either port of the network of December 2015: NVIDIA's TorchScript archive `inception-2015-12-05.pt`,
    which clean-fid uses, or the state dict `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid. Both are given
    (x - 128) / 128, as clean-fid's "clean" mode does.
    """
    path = existing_file(file)
    if is_torchscript(path):
        try:
            archive: Any = read_torchscript(path)
        except RewardError as error:  # the reader is the rewards' own
            raise EvaluationError(str(error)) from None
        if "layers" not in {name for name, _ in archive.named_children()}:
            raise EvaluationError(f"{path} has no `layers`; give inception-2015-12-05.pt")
        check_finite(archive.layers.state_dict(), path)
        layers = archive.layers.to(device)
    else:
        layers = _fid_inception()
        state = {k: v for k, v in read_tensors(path).items() if not k.startswith("fc.")}
        counters = {name for name in layers.state_dict() if name.endswith("num_batches_tracked")}
        expected = {k: s for k, s in shapes_of(layers.state_dict()).items() if k not in counters}
        check_shapes({k: v for k, v in state.items() if k not in counters}, expected, path)
        check_finite(state, path)
        fresh = {name: torch.zeros((), dtype=torch.long) for name in counters}  # training's; absent from old files
        layers = _frozen(layers, fresh | state, device)

    def features(x: Tensor) -> Tensor:
        return layers((x - 128) / 128).flatten(1)

    return features, WEIGHTS.contents(path).sha256


def load_dinov2(folder: str | Path, device: torch.device) -> tuple[Features, str]:
    """(features, sha256) of a Hugging Face DINOv2 folder: normalised images float [N, 3, H, W] (H and W multiples
    of the patch) -> the class token after the last norm, float32 [N, D].
    """
    declare_torchvision_ops()
    from transformers import Dinov2Config, Dinov2Model

    folder = Path(folder)
    existing_file(folder / "config.json")
    path = next((folder / name for name in DINOV2_FILES if (folder / name).is_file()), None)
    if path is None:
        raise EvaluationError(f"{folder} holds none of {', '.join(DINOV2_FILES)}; put the weights there")
    try:
        kind = parse_json((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise EvaluationError(f"{folder / 'config.json'} is not a configuration; get it again") from None
    if kind != "dinov2":
        raise EvaluationError(f"{folder / 'config.json'} is of a {kind!r}; give a DINOv2 folder")
    read_tensors(path)  # mapped, not copied: a file that is damaged or more than tensors is named before it is used
    try:  # transformers renames the published keys, and would fill those it lacks with random numbers
        config = Dinov2Config.from_pretrained(folder)
        loaded: Any = Dinov2Model.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True
        )
        model, info = loaded
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0][:160]
        raise EvaluationError(f"{path} does not fit {folder / 'config.json'} ({line}); get both again") from None
    if wrong := [f"{kind} {listed(list(map(str, names)))}" for kind, names in sorted(info.items()) if names]:
        raise EvaluationError(f"{path} does not fit {folder / 'config.json'}; get both again. {'; '.join(wrong)}")
    check_finite(model.state_dict(), path)
    model = model.float().to(device).eval().requires_grad_(False)

    def features(x: Tensor) -> Tensor:
        return model(pixel_values=x).last_hidden_state[:, 0]

    return features, WEIGHTS.contents(path).sha256


def load_clip_evaluator(file: str | Path, name: str, device: torch.device) -> tuple[ClipModel, Tokenize, str]:
    """(model, tokenizer, sha256) of the open_clip architecture `name` (or a JSON file) with a local file's weights.

    `file` is a checkpoint of open_clip's (safetensors, .bin, .pt) or OpenAI's own archive such as `ViT-B-32.pt`.
    OpenAI trained with QuickGELU, which no weight shows: its archive is refused for an architecture without.
    """
    path = existing_file(file)
    try:
        model, tokenize = load_clip(name, path, device)
    except RewardError as error:  # the loader is the rewards' own
        raise EvaluationError(str(error)) from None
    return model, tokenize, WEIGHTS.contents(path).sha256
