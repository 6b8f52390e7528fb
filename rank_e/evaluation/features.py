"""Feature networks whose Frechet distances are reported, each with its published protocol.

Every image, real or drawn, is first brought to the evaluation size (`square_lanczos`, 256 px by default), then to
the network's own input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rank_e.evaluation.base import Images, check_images, check_values
from rank_e.evaluation.networks import Features, load_clip, load_dinov2, load_inception
from rank_e.evaluation.resize import clean_fid, clip_bicubic, square_lanczos, squash_bicubic
from rank_e.rewards.clip import input_size
from rank_e.rewards.open_clip_models import model_within
from rank_e.rewards.preprocessing import OPENAI_MEAN, OPENAI_STD, normalise

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2_SIZE = 224
IMAGE_SIZE = 256


class NetworkFeatures:
    """A feature network with its protocol: images (N of uint8 [3, H, W]) -> float32 [N, D] on the CPU."""

    def __init__(
        self,
        network: Features,
        prepare: Callable[[Tensor], Tensor],
        *,
        protocol: str,
        source: str,
        device: torch.device,
        image_size: int = IMAGE_SIZE,
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        self.network, self.prepare, self.device = network, prepare, device
        self.image_size, self.statistics = image_size, statistics
        self.protocol = f"{protocol}; centre square, Lanczos to {image_size} px"
        self.source = source

    @torch.no_grad()
    def __call__(self, images: Images) -> Tensor:
        """Features; EvaluationError for images of another kind or features that are not finite."""
        check_images(self.protocol, images)
        inputs = torch.stack([self.prepare(square_lanczos(image, self.image_size)) for image in images])
        inputs = inputs.to(self.device)
        if self.statistics is not None:
            inputs = normalise(inputs, *self.statistics)
        return check_values(self.protocol, self.network(inputs).float().cpu())


def inception_features(folder: Path, device: torch.device, *, file: str, image_size: int) -> NetworkFeatures:
    """FID's features: clean-fid's "clean" mode on the Inception of a local file, D = 2048."""
    network, source = load_inception(folder / file, device)
    protocol = "Inception v3 (2015-12-05), clean-fid clean 299 px"
    return NetworkFeatures(network, clean_fid, protocol=protocol, source=source, device=device, image_size=image_size)


def dinov2_features(folder: Path, device: torch.device, *, file: str, image_size: int) -> NetworkFeatures:
    """FD-DINOv2 (Stein et al., 2023): the class token at 224 px (D = 1024 for the large model they chose).

    transformers interpolates position embeddings trained at 518 px; torch.hub's code adds an offset of 0.1 first,
    so distances agree with dgm-eval's closely, not to the last digit.
    """
    network, source = load_dinov2(folder / file, device)
    return NetworkFeatures(
        network,
        lambda image: squash_bicubic(image, DINOV2_SIZE),
        protocol=f"DINOv2 class token, bicubic {DINOV2_SIZE} px",
        source=source,
        device=device,
        image_size=image_size,
        statistics=(IMAGENET_MEAN, IMAGENET_STD),
    )


def clip_features(folder: Path, device: torch.device, *, file: str, model: str, image_size: int) -> NetworkFeatures:
    """FD-CLIP as clean-fid's `clip_vit_b_32`: image embeddings after the projection, not normalised (D = 512)."""
    network, _, source = load_clip(folder / file, model_within(folder, model), device)
    size = input_size(network)
    return NetworkFeatures(
        network.encode_image,
        lambda image: clip_bicubic(image, size),
        protocol=f"CLIP {model} image embedding, bicubic {size} px",
        source=source,
        device=device,
        image_size=image_size,
        statistics=(OPENAI_MEAN, OPENAI_STD),
    )
