"""Judges with one score an image: the CLIP score, and any reward as a judge (HPSv2's benchmark)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rank_e.evaluation.base import EvaluationError, Images, check_images, check_values
from rank_e.evaluation.features import IMAGE_SIZE
from rank_e.evaluation.networks import load_clip
from rank_e.evaluation.resize import clip_bicubic, square_lanczos
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

    def __init__(
        self,
        model: ClipModel,
        tokenize: Tokenize,
        *,
        name: str,
        source: str,
        image_size: int = IMAGE_SIZE,
    ) -> None:
        self.model, self.tokenize, self.image_size, self.source = model, tokenize, image_size, source
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
    network, tokenize, source = load_clip(folder / file, model_within(folder, model), device)
    return ClipScore(network, tokenize, name=model, source=source, image_size=image_size)


class RewardScore:
    """A reward as a judge, in the reward's own units; images of one size at a time are given to it as they are."""

    def __init__(self, reward: Reward, *, name: str, source: str, device: torch.device) -> None:
        self.reward, self.device, self.source = reward, device, source
        self.protocol = f"reward {name}"

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Scores float32 [N]; EvaluationError for images of several sizes or scores that are not finite."""
        check_prompts(self.protocol, images, prompts)
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            raise EvaluationError(f"{self.protocol}: images of {len(sizes)} sizes in one batch; resize them first")
        unit = torch.stack(list(images)).to(self.device).float() / 255
        return check_values(self.protocol, self.reward(unit, list(prompts)).detach().float().cpu())
