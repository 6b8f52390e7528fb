"""The embedded world's metrics, as the factories that `params.yaml` names.

They are given like anyone's own: `kind: "package.module:factory"`, called with the weights' folder, the device and
the entry's further keys. The CLIP that evaluates is another one than that which rewards.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from rank_e.evaluation.base import Images, check_values
from rank_e.evaluation.metric import Metric
from rank_e.io.pixels import from_bytes
from rank_e.io.verified import WEIGHTS
from rank_e.rewards.clip import ClipModel, ClipReward
from rank_e.shapes import clip, world
from rank_e.shapes.backbone import load_world_clip
from rank_e.shapes.features import EvaluatorFeatures, PatchNet, evaluator_features, patch_features


class CachedEvaluator:
    """The frozen evaluator; images that several metrics see one after another pass through it once.

    The last images are kept and compared value by value, so that others never get their features.
    """

    def __init__(self, model: ClipModel) -> None:
        self.model = model
        self._last: tuple[Tensor, EvaluatorFeatures] | None = None

    def __call__(self, images: Tensor) -> EvaluatorFeatures:
        """Features of images [N, 3, H, W] in [0, 1], on the model's device."""
        if self._last is None or not torch.equal(self._last[0], images):
            self._last = (images.clone(), evaluator_features(self.model, images))
        return self._last[1]


@lru_cache(maxsize=1)
def _evaluator(folder: Path, device: torch.device) -> CachedEvaluator:
    return CachedEvaluator(load_world_clip(folder, "evaluator", clip.EVALUATOR, device))


@lru_cache(maxsize=1)
def _evaluator_sha256(folder: Path) -> str:
    return WEIGHTS.contents(folder / "evaluator.safetensors").sha256


def _unit(images: Images, device: torch.device) -> Tensor:
    return from_bytes(torch.stack(list(images)).to(device))


class ShapesFeatures:
    """A feature network: images -> float32 [N, D], or [N, P, D] for P places of each."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        device: torch.device,
        metric: Metric,
        *,
        protocol: str,
        sha256: str,
    ):
        self.network, self.device, self.metric, self.protocol, self.sha256 = network, device, metric, protocol, sha256

    def __call__(self, images: Images) -> Tensor:
        return check_values(self.protocol, self.network(_unit(images, self.device)).cpu())


class ShapesScore:
    """A scorer: images and prompts -> float32 [N]."""

    def __init__(
        self,
        score: Callable[[Tensor, list[str]], Tensor],
        device: torch.device,
        metric: Metric,
        *,
        protocol: str,
        sha256: str,
    ):
        self.score, self.device, self.metric, self.protocol, self.sha256 = score, device, metric, protocol, sha256

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        return check_values(self.protocol, self.score(_unit(images, self.device), list(prompts)).float().cpu())


def last_features(folder: Path, device: torch.device) -> ShapesFeatures:
    """What the evaluator sees last, averaged over the image."""
    evaluator, sha256 = _evaluator(folder, device), _evaluator_sha256(folder)
    metric = Metric("FD", "lower", "Fréchet distance to real images, the evaluator's last features", decimals=2)
    return ShapesFeatures(lambda x: evaluator(x).last, device, metric, protocol="shapes evaluator, last", sha256=sha256)


def middle_features(folder: Path, device: torch.device) -> ShapesFeatures:
    """What the evaluator sees half-way: texture and edges."""
    evaluator, sha256 = _evaluator(folder, device), _evaluator_sha256(folder)
    metric = Metric("Mid-level FD", "lower", "Fréchet distance of the evaluator's middle features", decimals=2)
    return ShapesFeatures(
        lambda x: evaluator(x).middle, device, metric, protocol="shapes evaluator, middle", sha256=sha256
    )


def patch_places(folder: Path, device: torch.device) -> ShapesFeatures:
    """Patches all over the image seen by a fixed random network: texture without meaning."""
    metric = Metric("Patch FD", "lower", "Fréchet distance of patches: texture and edges", decimals=2)
    net = PatchNet().to(device)
    return ShapesFeatures(
        lambda x: patch_features(net, x), device, metric, protocol="patches, fixed random network", sha256="none"
    )


def clip_score(folder: Path, device: torch.device) -> ShapesScore:
    """100 cos(image, prompt) by the evaluator, which no update ever saw."""
    evaluator, sha256 = _evaluator(folder, device), _evaluator_sha256(folder)
    reward = ClipReward(evaluator.model, clip.tokenize, name="clip score")

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        return reward.compare(evaluator(images).embedding, prompts)

    meaning = "agreement of image and prompt, 100 cos, by a network that no update ever saw"
    metric = Metric("CLIP score", "higher", meaning, decimals=2)
    return ShapesScore(score, device, metric, protocol="shapes evaluator, 100 cos", sha256=sha256)


def checker(folder: Path, device: torch.device) -> ShapesScore:
    """1 where the exact checker finds what the prompt says, else 0."""

    def check(images: Tensor, prompts: list[str]) -> Tensor:
        named = [world.Prompt.from_text(index, text) for index, text in enumerate(prompts)]
        return world.check_images(images, named)

    meaning = "share of images in which the exact checker finds what the prompt says"
    metric = Metric("Accuracy", "higher", meaning, unit="%", decimals=1)
    return ShapesScore(check, torch.device("cpu"), metric, protocol="exact checker", sha256="none")
