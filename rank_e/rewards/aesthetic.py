"""The LAION aesthetic predictors: a published head on CLIP's normalised image embedding; prompts are not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rank_e.precision import float32_island
from rank_e.rewards.base import RewardError, check_pairs, check_scores
from rank_e.rewards.clip import ClipModel, Preprocess, clip_inputs
from rank_e.rewards.open_clip_models import model_within, shared_clip
from rank_e.rewards.preprocessing import clip_protocol
from rank_e.rewards.weights import check_weights, read_weights

MLP_WIDTHS = (1024, 128, 64, 16, 1)
# Places of the Linear layers in the published nn.Sequential: dropouts (and, in one of the files, ReLUs) lie between.
MLP_LAYOUTS = {(0, 2, 4, 6, 7): False, (0, 3, 6, 9, 11): True}  # -> whether a ReLU follows each but the last


def build_head(what: str, tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """The head whose layout the keys tell: linear (`weight`, `bias`) or MLP (`layers.N.weight`, ...).

    The linear one is LAION-AI's `sa_0_4_vit_*_linear`; the MLP is christophschuhmann's improved predictor
    (`sac+logos+ava1-l14-linearMSE`, no activation between its layers; `ava+logos-l14-reluMSE` has ReLUs). Dropouts
    are left out: heads are used in eval mode. Raises RewardError for any other layout, naming `what`.
    """
    if tensors.keys() == {"weight", "bias"}:
        linears, relu, widths = [""], False, [tensors["weight"].shape[-1], 1]
    else:
        numbers = {key.split(".")[1] for key in tensors if key.startswith("layers.") and key.count(".") == 2}
        places = tuple(sorted(int(number) for number in numbers if number.isdecimal()))
        if places not in MLP_LAYOUTS:
            raise RewardError(
                f"{what} is no published aesthetic head (keys {', '.join(sorted(tensors)[:4])}, ...); "
                "give the linear or the MLP file of the LAION aesthetic predictor"
            )
        linears, relu = [f"layers.{place}." for place in places], MLP_LAYOUTS[places]
        widths = [tensors["layers.0.weight"].shape[-1] if "layers.0.weight" in tensors else 0, *MLP_WIDTHS]
    layers = [nn.Linear(widths[i], widths[i + 1]) for i in range(len(linears))]
    wanted = {
        f"{prefix}{key}": value
        for prefix, layer in zip(linears, layers, strict=True)
        for key, value in layer.state_dict().items()
    }
    check_weights(what, tensors, wanted)
    head = nn.Sequential()
    for prefix, layer in zip(linears, layers, strict=True):
        layer.load_state_dict({key: tensors[prefix + key] for key in ("weight", "bias")}, strict=True)
        head.append(layer)
        if relu and layer is not layers[-1]:
            head.append(nn.ReLU())
    return head.eval().requires_grad_(False)


class AestheticReward:
    """head(unit-norm CLIP image embedding): about 1 to 10, the mean rating that people would give."""

    def __init__(
        self, model: ClipModel, head: nn.Sequential, name: str = "aesthetic", prepare: Preprocess = clip_protocol
    ) -> None:
        self.model = model
        self.head = head.to(model.logit_scale.device)
        self.name = name
        self.prepare = prepare

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores float32 [N] of `images` [N, 3, H, W] in [0, 1]; RewardError if one is not finite."""
        check_pairs(self.name, images, prompts)
        embedding = self.model.encode_image(clip_inputs(self.model, images, self.prepare))
        with float32_island(images.device):  # the head is small, and its scores are compared
            scores = self.head(F.normalize(embedding.float(), dim=-1)).squeeze(-1)
        return check_scores(self.name, scores)


def aesthetic_reward(folder: Path, device: torch.device, *, file: str, clip_file: str, model: str) -> AestheticReward:
    """The predictor with the head of `file` on the CLIP `model` of `clip_file`; RewardError if their widths differ."""
    path = folder / file
    head = build_head(str(path), read_weights(path))
    network, _ = shared_clip(model_within(folder, model), folder / clip_file, device)
    width = int(network.text_projection.shape[-1])  # images and prompts share one embedding width
    if head[0].in_features != width:
        raise RewardError(
            f"{path} reads embeddings of {head[0].in_features}, the CLIP gives {width}; use the CLIP that it was "
            "trained on (ViT-L-14-quickgelu for the l14 heads)"
        )
    return AestheticReward(network, head)
