"""The CLIP reward: 100 times the cosine of image and prompt, differentiable from the pixels.

It serves any open_clip model: the network's own size and normalisation constants are read from its visual tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rank_e.precision import channels_last, float32_island
from rank_e.rewards.base import RewardError, check_pairs, check_scores
from rank_e.rewards.open_clip_models import ClipModel, Tokenize, model_within, shared_clip
from rank_e.rewards.preprocessing import clip_protocol, normalise, shorter_side

Preprocess = Callable[[Tensor, int, Sequence[float], Sequence[float]], Tensor]  # images, size, mean, std -> inputs


def preprocess(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] -> [N, 3, size, size] as CLIP was trained on, differentiable.

    The shorter side is resized to `size` (bicubic, antialiased), the centre is cut out, then (x - mean) /
    std. An image of the right size is not resampled. Overshoots of the resize are kept; published checkpoints
    score with `preprocessing.clip_protocol`, which cuts them off as Pillow does.
    """
    return normalise(shorter_side(images, size), mean, std)


def clip_inputs(model: ClipModel, images: Tensor, prepare: Preprocess = preprocess) -> Tensor:
    """`prepare` with the size and the normalisation constants of an open_clip model's visual tower."""
    with float32_island(images.device):  # pixels are prepared in float32
        inputs = prepare(images, input_size(model), model.visual.image_mean, model.visual.image_std)
    return channels_last(inputs)


def input_size(model: ClipModel) -> int:
    """Side of an open_clip model's input in pixels. RewardError if it is not square."""
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise RewardError(f"CLIP model: its input of {height} x {width} is not square; use a model of square images")
    return int(height)


class ClipReward:
    """`scale` * cos(image embedding, text embedding) of an open_clip model, in [-scale, scale].

    The model is used as it is given: put it in eval mode, without gradients of its own weights. Each distinct
    prompt of a call is encoded once and without gradient (not once for all: what a step does would depend on those
    before it). Hessel et al. (2021) cut the score off at zero; this does not, since
    a cut-off has no gradient. HPSv2 (Wu et al., 2023) is the same with `scale` 1, other weights and its own protocol.
    """

    def __init__(
        self,
        model: ClipModel,
        tokenize: Tokenize,
        name: str = "clip",
        scale: float = 100.0,
        prepare: Preprocess = preprocess,
    ) -> None:
        self.model = model
        self.tokenize = tokenize
        self.name = name
        self.scale = scale
        self.prepare = prepare

    def text_features(self, prompts: list[str]) -> Tensor:
        """Unit-norm text embeddings [N, D]."""
        distinct = list(dict.fromkeys(prompts))
        place = {prompt: row for row, prompt in enumerate(distinct)}
        device = self.model.logit_scale.device
        with torch.no_grad():
            encoded = self.model.encode_text(self.tokenize(distinct).to(device))
            with float32_island(device):
                features = F.normalize(encoded.float(), dim=-1)
        return features[torch.tensor([place[prompt] for prompt in prompts], device=device)]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores float32 [N] of `images` [N, 3, H, W] in [0, 1]; RewardError if one is not finite."""
        check_pairs(self.name, images, prompts)
        return self.compare(self.model.encode_image(clip_inputs(self.model, images, self.prepare)), prompts)

    def compare(self, embeddings: Tensor, prompts: list[str]) -> Tensor:
        """The same scores of the model's own image embeddings [N, D], of any length."""
        text = self.text_features(prompts)
        with float32_island(embeddings.device):  # scores of one prompt differ by less than bfloat16 resolves
            scores = self.scale * (F.normalize(embeddings.float(), dim=-1) * text).sum(-1)
        return check_scores(self.name, scores)


def clip_reward(folder: Path, device: torch.device, *, file: str, model: str) -> ClipReward:
    """100 cos(image, prompt) by the open_clip `model` (a name, or a JSON file) with the weights of `file`."""
    network, tokenize = shared_clip(model_within(folder, model), folder / file, device)
    return ClipReward(network, tokenize, prepare=clip_protocol)
