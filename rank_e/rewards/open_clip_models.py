"""open_clip models from local files: the network of a name, its weights, its tokenizer; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rank_e.io.files import state_of
from rank_e.io.json_text import parse_json
from rank_e.io.torchvision_ops import import_open_clip
from rank_e.rewards.base import RewardError
from rank_e.rewards.preprocessing import OPENAI_MEAN, OPENAI_STD
from rank_e.rewards.weights import assign, is_torchscript, read_weights

Tokenize = Callable[[list[str]], Tensor]
ClipModel = Any  # an open_clip.CLIP: open_clip ships no types


def model_config(model: str) -> dict[str, Any]:
    """Sizes of an open_clip model: of a name that open_clip knows, or from a JSON file in its format.

    Only CLIPs with open_clip's own text tower and OpenAI's normalisation are served: others need a tokenizer from the
    network. Raises RewardError naming the model.
    """
    if model.endswith(".json"):
        path = Path(model)
        if not path.is_file():
            raise RewardError(f"model: {path} does not exist; give an open_clip model name or its JSON file")
        try:
            config = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RewardError(f"model: {path} is no JSON ({error}); give an open_clip model config") from error
    elif ":" in model:  # such as hf-hub:, which open_clip would fetch
        raise RewardError(f"model: {model} is a place to download from; name the model, such as ViT-H-14, and its file")
    else:
        config = import_open_clip().get_model_config(model)
        if config is None:
            raise RewardError(f"model: unknown open_clip model {model!r}; open_clip.list_models() names them")
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    if not isinstance(config, dict) or config.keys() - known or not known - config.keys() <= {"quick_gelu"}:
        raise RewardError(f"model: {model} is no plain CLIP; choose one like ViT-L-14-quickgelu")
    if not isinstance(config["text_cfg"], dict) or not isinstance(config["vision_cfg"], dict):
        raise RewardError(f"model: {model} is no plain CLIP: text_cfg and vision_cfg are objects; correct its config")
    if any(key.startswith("hf_") for key in config["text_cfg"]):
        raise RewardError(f"model: {model} reads text with another library's tokenizer; choose one like ViT-H-14")
    return config


def model_within(folder: Path, model: str) -> str:
    """What `params.yaml` gives as `model`: a name stays, a JSON file lies in the weights' folder like every file."""
    return str(folder / model) if model.endswith(".json") else model


def load_clip(model: str, file: str | Path, device: torch.device) -> tuple[ClipModel, Tokenize]:
    """The open_clip model `model` with the weights of `file`, float32, frozen, in eval mode, and its tokenizer.

    `file` is what OpenAI, open_clip or HPSv2 publish (see `weights.read_weights`). QuickGELU is part of the name:
    OpenAI's weights need `ViT-L-14-quickgelu`, not `ViT-L-14`, which no weight shows: their TorchScript archives are
    refused for a model without. Raises RewardError naming the model or the file.
    """
    config = model_config(model)
    if is_torchscript(Path(file)) and not config.get("quick_gelu", False):
        wanted = 'a config with "quick_gelu": true' if model.endswith(".json") else f"{model}-quickgelu"
        raise RewardError(f"{file} is a TorchScript archive, so OpenAI's, and wants QuickGELU; give {wanted}")
    open_clip = import_open_clip()
    tensors = read_weights(file)
    try:
        with torch.device("meta"):  # initialising a ViT-H takes longer than loading it
            network: ClipModel = open_clip.CLIP(**config)
    except Exception as error:  # what sizes raise that are no sizes
        line = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise RewardError(f"model: {model} does not fit open_clip ({line}); correct its config") from error
    scale = tensors.get("logit_scale")
    if scale is not None:  # stored as [] or [1] by different versions of open_clip
        tensors["logit_scale"] = scale.reshape(network.logit_scale.shape)
    assign(f"{file} as {model}", network, tensors)
    length = network.context_length
    if network.attn_mask is not None:  # not part of a state dict, so still on the meta device
        network.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    network.visual.image_mean, network.visual.image_std = OPENAI_MEAN, OPENAI_STD
    return network.to(device), open_clip.SimpleTokenizer(context_length=length)


def shared_clip(model: str, file: Path, device: torch.device) -> tuple[ClipModel, Tokenize]:
    """`load_clip`, but one network for all in this process that use the same file, as long as the file is the same."""
    return _shared_clip(model, file, device, state_of(file))


@lru_cache(maxsize=2)
def _shared_clip(model: str, file: Path, device: torch.device, state: object) -> tuple[ClipModel, Tokenize]:
    return load_clip(model, file, device)
