"""Metrics with one score an image: the CLIP score, and any reward as a metric (HPSv2's benchmark)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rank_e.evaluation.base import EvaluationError, Images, check_images, check_values
from rank_e.evaluation.features import IMAGE_SIZE
from rank_e.evaluation.metric import Metric
from rank_e.evaluation.networks import load_clip_evaluator
from rank_e.evaluation.resize import clip_bicubic, square_lanczos
from rank_e.io.pixels import from_bytes
from rank_e.rewards.base import Reward
from rank_e.rewards.clip import ClipModel, Tokenize, input_size
from rank_e.rewards.open_clip_models import model_within
from rank_e.rewards.preprocessing import OPENAI_MEAN, OPENAI_STD, normalise

PREFIX = "A photo depicts "  # Hessel et al., 2021


def check_prompts(name: str, images: Images, prompts: Sequence[str]) -> None:
    """Raise EvaluationError unless there is one prompt for each image."""
    check_images(name, images)
    if len(images) != len(prompts):
        raise EvaluationError(f"{name}: {len(images)} images for {len(prompts)} prompts; give one for each")


class ClipScore:
    """100 cos(image, "A photo depicts " + prompt), in [-100, 100], as published for COCO (GigaGAN's evaluation).

    Not cut off at zero and not scaled by 2.5 (Hessel et al. do both): text-to-image tables report the plain cosine.
    Images: centre square, Lanczos to `image_size`, then CLIP's bicubic. Prompts over the context are truncated.
    """

    metric = Metric("CLIP score", "higher", "agreement of image and prompt, 100 cos", decimals=2)

    def __init__(
        self,
        model: ClipModel,
        tokenize: Tokenize,
        *,
        name: str,
        sha256: str,
        image_size: int = IMAGE_SIZE,
    ) -> None:
        self.model, self.tokenize, self.image_size, self.sha256 = model, tokenize, image_size, sha256
        self.input_size = input_size(model)
        self.protocol = (
            f"CLIP score {name}, prefix {PREFIX.strip()!r}, bicubic {self.input_size} px; "
            f"centre square, Lanczos to {image_size} px"
        )

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Scores float32 [N]; EvaluationError for images of another kind or scores that are not finite."""
        check_prompts(self.protocol, images, prompts)
        device = self.model.logit_scale.device
        inputs = [clip_bicubic(square_lanczos(image, self.image_size), self.input_size) for image in images]
        seen = self.model.encode_image(normalise(torch.stack(inputs).to(device), OPENAI_MEAN, OPENAI_STD))
        text = self.model.encode_text(self.tokenize([PREFIX + prompt for prompt in prompts]).to(device))
        return check_values(self.protocol, 100 * F.cosine_similarity(seen, text).float().cpu())


def clip_score(folder: Path, device: torch.device, *, file: str, model: str, image_size: int) -> ClipScore:
    """The CLIP score by the open_clip `model` with the weights of `file`."""
    network, tokenize, sha256 = load_clip_evaluator(folder / file, model_within(folder, model), device)
    return ClipScore(network, tokenize, name=model, sha256=sha256, image_size=image_size)


class RewardScore:
    """A reward as a metric, in the reward's own units; images of one size at a time are given to it as they are.

    `sha256`: of what decides its values (weights, or the settings that name them).
    """

    def __init__(self, reward: Reward, *, metric: Metric, name: str, sha256: str, device: torch.device) -> None:
        self.reward, self.metric, self.device, self.sha256 = reward, metric, device, sha256
        self.protocol = f"reward {name}"

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Scores float32 [N]; EvaluationError for images of several sizes or scores that are not finite."""
        check_prompts(self.protocol, images, prompts)
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            raise EvaluationError(f"{self.protocol}: images of {len(sizes)} sizes in one batch; resize them first")
        unit = from_bytes(torch.stack(list(images)).to(self.device))
        return check_values(self.protocol, self.reward(unit, list(prompts)).detach().float().cpu())
