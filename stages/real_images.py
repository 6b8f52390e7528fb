"""Real held-out images as evaluation reads them: which of them, what a tokenizer makes of them, which were skipped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rank_e.backbones.protocol import TokenizerModel
from rank_e.data.dataset import Dataset, Originals
from rank_e.evaluation.evaluator import Evaluator
from rank_e.evaluation.prompt_sets import PromptSet
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.resize import squares
from rank_e.evaluation.summary import Nested
from rank_e.io.pixels import from_bytes, from_signed, to_bytes, to_signed
from rank_e.io.sealed import SealError, read_json, write_json
from rank_e.seeds import seed_for
from stages.evaluation import evaluator_of
from stages.runtime.stage import Stage


class RealImages:
    """A dataset's real images, and an account of those that were skipped which outlives a killed stage.

    What is skipped is written down before the images of its batch are used, so that no image counts whose replacement
    was not noted. The first evaluation.reference_images are the reference; the `count` after them are compared with it.
    """

    def __init__(self, stage: Stage, dataset: Dataset, prompts: list[str], account: Path) -> None:
        """prompts: the evaluation's; account: where what was skipped is written down."""
        params = stage.params.evaluation
        self.dataset, self.prompts, self.account, self.device = dataset, prompts, account, stage.device
        self.seed = seed_for(params.seed, "reference")
        self.first, self.count = params.reference_images, params.real_images
        self.skipped: list[dict[str, str]] = []
        if account.is_file():
            try:
                self.skipped = read_json(account)
            except SealError as error:  # what was evaluated beside it is of images that it no longer names
                print(f"{error}: begin from the inputs", flush=True)
                shutil.rmtree(account.parent)

    def originals(self, start: int, stop: int) -> Originals:
        """Images `start` to `stop` of the whole order, of any size, and their captions."""
        found = self.dataset.originals(start, stop, self.prompts, self.seed)
        known = {row["name"] for row in self.skipped}
        if fresh := [row for row in self.dataset.skipped() if row["name"] not in known]:
            self.skipped = sorted([*self.skipped, *fresh], key=lambda row: row["name"])
            write_json(self.skipped, self.account)
        return found

    def signed(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> what a tokenizer reads, on the device."""
        return to_signed(from_bytes(images.to(self.device)))

    def fresh(self, start: int, stop: int, size: int) -> tuple[Tensor, list[str]]:
        """Images `start` to `stop` of those that are compared, uint8 [n, 3, size, size], and their captions."""
        images, captions = self.originals(self.first + start, self.first + stop)
        return squares(images, size), captions

    @torch.no_grad()
    def reconstructed(self, start: int, stop: int, tokenizer: TokenizerModel) -> tuple[Tensor, list[str]]:
        """The same through the tokenizer's encoder, codes and decoder, uint8, and their captions."""
        images, captions = self.fresh(start, stop, tokenizer.config.image_size)
        decoded = from_signed(tokenizer.decode(tokenizer.encode(self.signed(images))[0]))
        return to_bytes(decoded.clamp(0, 1)).cpu(), captions


def evaluate_reconstructions(
    stage: Stage,
    images: RealImages,
    tokenizer: TokenizerModel,
    evaluator: Evaluator,
    folder: Path,
    *,
    intervals: bool = True,
) -> Nested:
    """Metrics of the compared images' reconstructions, and "l1": their mean absolute error in [0, 1], as bytes."""
    size, total = tokenizer.config.image_size, 0.0
    batch = stage.memory.at_once(stage.params.evaluation.batch_size)
    found = evaluator.evaluate_images(
        lambda start, stop: images.reconstructed(start, stop, tokenizer), images.count, folder, intervals=intervals
    )
    for start in range(0, images.count, batch):
        stop = min(start + batch, images.count)
        drawn, real = images.reconstructed(start, stop, tokenizer)[0], images.fresh(start, stop, size)[0]
        total += (from_bytes(drawn) - from_bytes(real)).abs().mean((1, 2, 3)).sum().item()
    return found | {"l1": {"value": total / images.count}}


def real_evaluator(stage: Stage, held_out: PromptSet, references: Mapping[str, Statistics]) -> Evaluator:
    """The evaluator of real images: their captions are their own, and the evaluation's categories not theirs."""
    categories = [""] * stage.params.evaluation.real_images
    return evaluator_of(stage, replace(held_out, prompts=[], categories=categories), references)
