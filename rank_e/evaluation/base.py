"""What evaluates images: a call from images (and prompts) to one value or one feature row an image.

It sees what a published evaluation would read back from image files: bytes. It says what it measures (`Metric`), by
which protocol (sizes, resizing, network) and with which weights (their sha256), so that a number is never compared with
one that was made in another way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.evaluation.metric import Metric

Images = Sequence[Tensor] | Tensor
"""N images uint8 [3, H, W]: a list (sizes may differ) or one tensor [N, 3, H, W]."""


class EvaluationError(RankEError):
    """An evaluator cannot be loaded, was given the wrong images, or was asked to compare across protocols."""


class FeatureNetwork(Protocol):
    """Images (`Images`) -> features float32 [N, D], or [N, P, D] of P places, on the CPU, for a Frechet distance."""

    metric: Metric
    protocol: str
    sha256: str

    def __call__(self, images: Images) -> Tensor: ...


class Scorer(Protocol):
    """Images (`Images`) and their N prompts -> one score an image, float32 [N] on the CPU."""

    metric: Metric
    protocol: str
    sha256: str

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor: ...


def digest(value: object) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def check_images(name: str, images: Images) -> None:
    """Raise EvaluationError unless every image is uint8 [3, H, W] and there is at least one."""
    if len(images) == 0:
        raise EvaluationError(f"{name}: no images; give at least one")
    for place, image in enumerate(images):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise EvaluationError(
                f"{name}: image {place} is {image.dtype} {list(image.shape)}; give uint8 [3, H, W] (`to_bytes`)"
            )


def check_values(name: str, values: Tensor) -> Tensor:
    """`values` [N] or [N, D] unchanged; raises EvaluationError with the first image whose value is not finite."""
    finite = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)
    if not bool(finite.all()):
        raise EvaluationError(
            f"{name}: the value of image {int((~finite).nonzero()[0])} is not finite; check its weights"
        )
    return values
