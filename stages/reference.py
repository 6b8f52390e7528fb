"""Stage reference: statistics of real held-out images, and how real and reconstructed ones score themselves.

In the embedded world the real set has exactly the evaluation's prompt mix: another mix alone would cost several points
of Frechet distance.
"""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from rank_e.data.dataset import Dataset, Originals
from rank_e.data.opening import open_dataset
from rank_e.evaluation.base import digest
from rank_e.evaluation.captions import CaptionSums, save_captions
from rank_e.evaluation.prompt_sets import held_out_set
from rank_e.evaluation.reference import MATCHED, Statistics
from rank_e.evaluation.resize import squares
from rank_e.evaluation.stream import ImageBatch, ImageStream, evaluate_stream
from rank_e.evaluation.tokens import token_histogram
from rank_e.io.files import replacing
from rank_e.io.pixels import from_bytes, from_signed, to_bytes, to_signed
from rank_e.seeds import seed_for
from stages.evaluation import evaluator_of
from stages.runtime.artifacts import ArtifactWriter
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main


@torch.no_grad()
def run(stage: Stage) -> None:
    """One file of moments a distance, tokens.safetensors (the real histogram), metrics.json, images, prompts.parquet.
    For matched distances one more file holds the sums of each caption's images.

    metrics: {"real": {metric: ...}, "reconstruction": {...}}, what a perfect generator and a perfect policy would score
    at evaluation.real_images images.
    """
    params, backbone, state = stage.params.evaluation, backbone_of(stage), stage.state()
    dataset = open_dataset(stage.params.data.held_out, backbone.image_size, "data.held_out")
    held_out = held_out_set(stage.params, dataset, stage.device)
    originals = ReferenceImages(dataset, state.folder / "skipped.json")
    seed = seed_for(params.seed, "reference")
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    size, device = tokenizer.config.image_size, stage.device

    def signed(images: torch.Tensor) -> torch.Tensor:
        return to_signed(from_bytes(images.to(device)))

    def real(start: int, stop: int) -> ImageBatch:
        images, captions = originals(start, stop, held_out.prompts, seed)
        tokens = tokenizer.encode(signed(squares(images, size)))[1].cpu()
        return ImageBatch(images, captions, totals={"tokens": token_histogram(tokens, tokenizer.config.codebook_size)})

    features = held_out.suite.features
    stream = ImageStream(state.folder / "real", key="", features=features, every=params.batch_size)
    evaluate_stream(
        stream, real, params.reference_images, params.batch_size, lambda s: stage.progress(s, "real images")
    )
    data = digest([stage.params.data.held_out.model_dump(), seed, params.reference_images])
    references = {name: Statistics.of(stream, name, data) for name in features}
    if (matched := params.matched) is not None:
        for name in matched.distances:
            sums = CaptionSums.of(stream, name, held_out.prompts, matched.least)
            references[name] = replace(references[name], captions=sums)

    def fresh(start: int, stop: int) -> tuple[torch.Tensor, list[str]]:
        first = params.reference_images
        images, captions = originals(first + start, first + stop, held_out.prompts, seed)
        return squares(images, size), captions

    def reconstructed(start: int, stop: int) -> tuple[torch.Tensor, list[str]]:
        images, captions = fresh(start, stop)
        return to_bytes(from_signed(tokenizer.decode(tokenizer.encode(signed(images))[0])).clamp(0, 1).cpu()), captions

    shown = min(params.images, params.real_images)
    _, captions = fresh(0, shown)
    # Real images come with captions of their own, so the evaluation's categories are not theirs.
    evaluator = evaluator_of(stage, replace(held_out, prompts=[], categories=[""] * params.real_images), references)
    metrics = {
        name: evaluator.evaluate_images(images_of, params.real_images, state.folder / f"{held_out.name}-{name}")
        for name, images_of in (("real", fresh), ("reconstruction", reconstructed))
    }
    with ArtifactWriter(stage.path("reference"), "reference", seed=params.seed, inputs={}) as out:
        for name, statistics in references.items():
            statistics.save(out.file(f"{name}.safetensors"))
        if by_caption := {name: item.captions for name, item in references.items() if item.captions is not None}:
            save_captions(out.file(MATCHED), by_caption)
        out.tensors("tokens", {"histogram": stream.total("tokens")})
        out.json("metrics", metrics)
        out.tensors("images", {"real": fresh(0, shown)[0], "reconstruction": reconstructed(0, shown)[0]})
        out.table("prompts", pd.DataFrame({"prompt": captions}))
        out.json("skipped", originals.skipped)
    state.remove()


class ReferenceImages:
    """A dataset's real images, and an account of those that were skipped which outlives a killed stage.

    What is skipped is written down before the images of its batch are used, so that no image counts whose replacement
    was not noted.
    """

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self.dataset, self.path = dataset, path
        self.skipped: list[dict[str, str]] = json.loads(path.read_text()) if path.is_file() else []

    def __call__(self, start: int, stop: int, prompts: list[str], seed: int) -> Originals:
        """`Source.originals`."""
        found = self.dataset.originals(start, stop, prompts, seed)
        known = {row["name"] for row in self.skipped}
        if fresh := [row for row in self.dataset.skipped() if row["name"] not in known]:
            self.skipped = sorted([*self.skipped, *fresh], key=lambda row: row["name"])
            with replacing(self.path) as file:
                file.write_text(json.dumps(self.skipped))
        return found


if __name__ == "__main__":
    main("reference", run)
