"""The evaluator: tokens or images of a prompt set in, nested metrics out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from rank_e.backbones.protocol import TokenizerModel
from rank_e.evaluation.base import Images
from rank_e.evaluation.prompt_sets import PromptSet
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.stream import ImageBatch, ImageStream, evaluate_stream
from rank_e.evaluation.summary import Nested
from rank_e.io.pixels import from_signed, to_bytes

Correction = Callable[[Tensor, int], Tensor]
"""Decoded images float32 [n, 3, S, S] in [0, 1] on the CPU and the number of the first -> the images to evaluate."""


def _silent(steps: range, label: str) -> Iterable[int]:
    return steps


@torch.no_grad()
def decode(tokenizer: TokenizerModel, tokens: Tensor) -> Tensor:
    """Tokens [n, L] -> images [n, 3, S, S] in [0, 1], on the tokenizer's device."""
    device = next(tokenizer.parameters()).device
    return from_signed(tokenizer.decode_tokens(tokens.long().to(device))).clamp(0, 1)


@dataclass(frozen=True)
class Evaluator:
    """A prompt set with its metrics, the real images' statistics, and how they are evaluated.

    `batch_size` images at a time; `resamples` of the bootstrap make the intervals (0: none), seeded by `seed`.
    `progress(steps, label)` iterates over the steps and may show how far it is.
    """

    prompt_set: PromptSet
    references: Mapping[str, Statistics]
    batch_size: int
    seed: int
    resamples: int
    device: torch.device
    progress: Callable[[range, str], Iterable[int]] = _silent

    def evaluate(
        self,
        tokenizer: TokenizerModel,
        tokens: Tensor,
        folder: Path | None = None,
        *,
        correct: Correction | None = None,
        intervals: bool = True,
    ) -> Nested:
        """Metrics of `tokens` [N, L], row i of which belongs to prompt i, through the tokenizer's decoder.

        `folder` keeps what has been evaluated, so that a killed run goes on there: one folder for one tokenizer, tokens
        and `correct`. Without one nothing is kept. EvaluationError for images or statistics that do not fit.
        """

        def decoded(start: int, stop: int) -> tuple[Images, list[str]]:
            images = decode(tokenizer, tokens[start:stop])
            corrected = images if correct is None else correct(images.cpu(), start)
            return to_bytes(corrected).cpu(), self.prompt_set.prompts[start:stop]

        return self.evaluate_images(decoded, len(tokens), folder, intervals=intervals)

    def evaluate_images(
        self,
        images_of: Callable[[int, int], tuple[Images, list[str]]],
        count: int,
        folder: Path | None = None,
        *,
        intervals: bool = True,
    ) -> Nested:
        """Metrics of `count` images; `images_of(start, stop)` gives those of a range (uint8) and their prompts."""
        with nullcontext(folder) if folder is not None else TemporaryDirectory() as place:
            stream = self._stream(Path(place))
            label = "evaluating" if folder is None else f"evaluating {folder.name}"

            def batch_of(start: int, stop: int) -> ImageBatch:
                images, prompts = images_of(start, stop)
                values = self.prompt_set.values(start, images)
                return ImageBatch(images, prompts, self.prompt_set.categories[start:stop], values)

            evaluate_stream(stream, batch_of, count, self.batch_size, lambda steps: self.progress(steps, label))
            resamples = self.resamples if intervals else 0
            return self.prompt_set.summarise(
                stream, self.references, seed=self.seed, resamples=resamples, device=self.device
            )

    def scores(self, folder: Path) -> dict[str, list[float]]:
        """The score of each image by each metric, of what was evaluated in `folder`."""
        names = list(self.prompt_set.suite.scores)
        rows = [columns for _, columns in self._stream(folder).rows(*names)]
        return {name: [value for columns in rows for value in columns[name].tolist()] for name in names}

    def _stream(self, folder: Path) -> ImageStream:
        # The key is the same for all arms; a state's folder is named by its stage and all that decides its bytes.
        suite, key = self.prompt_set.suite, f"{self.prompt_set.key} {folder.parent.name}/{folder.name}"
        return ImageStream(folder, key, features=suite.features, scores=suite.scores, every=self.batch_size)
