"""GenEval on images: detect, classify colours where asked, apply the rules; one row for each image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rank_e.evaluation.base import check_images
from rank_e.evaluation.geneval import rules
from rank_e.evaluation.geneval.colors import ColorClassifier
from rank_e.evaluation.geneval.detector import Detector
from rank_e.evaluation.geneval.tasks import GenEvalError, Task
from rank_e.io.pixels import to_bytes


@dataclass(frozen=True)
class ImageResult:
    """The verdict on image number `sample` of prompt number `index`. `reason` is empty where it is correct;
    `objects` is JSON: class name -> [[left, top, right, bottom, score], ...], best first, of what counted.
    """

    index: int
    sample: int
    tag: str
    prompt: str
    correct: bool
    reason: str
    objects: str


class GenEval:
    """The evaluator: a `detector`, a colour classifier `colors` and the published thresholds.

    Stateless: an image's result depends on that image and its prompt alone.
    """

    def __init__(
        self, detector: Detector, colors: ColorClassifier, thresholds: rules.Thresholds = rules.PUBLISHED
    ) -> None:
        self.detector = detector
        self.colors = colors
        self.thresholds = thresholds

    @property
    def protocol(self) -> str:
        """What makes two scores comparable, in one line."""
        limits = ", ".join(f"{key} {value:g}" for key, value in asdict(self.thresholds).items())
        return f"GenEval; detector {self.detector.name}; colours {self.colors.name}; {limits}"

    @property
    def sha256(self) -> str:
        """The sha256 of the detector's and of the classifier's weights."""
        return f"{self.detector.sha256} {self.colors.sha256}"

    def __call__(self, images: Tensor | Sequence[Tensor], items: Sequence[tuple[Task, int]]) -> list[ImageResult]:
        """Results of N `images` [3, H, W], float in [0, 1] or uint8; `items` gives each one's prompt and sample
        number. Raises EvaluationError for images that cannot be evaluated.
        """
        if len(images) != len(items):
            raise GenEvalError(f"geneval: {len(images)} images for {len(items)} prompts; give one for each")
        levels = [to_bytes(image) for image in images]
        check_images("geneval", levels)
        arrays = [image.permute(1, 2, 0).cpu().numpy() for image in levels]
        return [self._one(image, *item) for image, item in zip(arrays, items, strict=True)]

    def _one(self, image: NDArray[np.uint8], task: Task, sample: int) -> ImageResult:
        objects = rules.objects_of(self.detector(image, self.thresholds.floor), task.tag, self.thresholds)
        verdict = rules.check(task, objects, partial(self.colors, image), self.thresholds)
        boxes = {name: [[*item.box, item.score] for item in items] for name, items in sorted(objects.items())}
        return ImageResult(
            task.index, sample, task.tag, task.prompt, verdict.correct, "\n".join(verdict.reasons), json.dumps(boxes)
        )
