"""Stage reference: statistics of real held-out images, and how real and reconstructed ones score themselves.

In the embedded world the real set has exactly the evaluation's prompt mix: another mix alone would cost several points
of Frechet distance.
"""

import json
import os
from pathlib import Path

import pandas as pd
import torch

from rank_e.backbones.llamagen.tokenizer import to_unit
from rank_e.data.dataset import Dataset, Originals
from rank_e.data.opening import open_dataset
from rank_e.evaluation.base import as_bytes
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.sets import PromptSet
from rank_e.evaluation.stream import Batch, Stream, judge
from rank_e.evaluation.suite import Judges
from rank_e.evaluation.tokens import token_histogram
from rank_e.seeds import seed_for
from stages.runtime.artifacts import ArtifactWriter
from stages.runtime.backbone import backbone_of
from stages.runtime.judging import digest, held_out_set, judged, metrics_of, squares
from stages.runtime.stage import Stage, main


@torch.no_grad()
def run(stage: Stage) -> None:
    """One file of moments a distance, tokens.safetensors (the real histogram), metrics.json, images, prompts.parquet.

    metrics: real_... and reconstruction_..., what a perfect generator and a perfect policy would score at
    evaluation.real_images images.
    """
    params, backbone = stage.params.evaluation, backbone_of(stage)
    state, part = stage.state(), held_out_set(stage, backbone.image_size)
    dataset = open_dataset(stage.params.data.held_out, backbone.image_size, "data.held_out")
    originals = Images(dataset, state.folder / "skipped.json")
    seed = seed_for(params.seed, "reference")
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    size, device = tokenizer.config.image_size, stage.device

    def unit(images: torch.Tensor) -> torch.Tensor:
        return images.to(device).float() / 255 * 2 - 1

    def real(start: int, stop: int) -> Batch:
        images, captions = originals(start, stop, part.prompts, seed)
        tokens = tokenizer.encode(unit(squares(images, size)))[1].cpu()
        return Batch(images, captions, totals={"tokens": token_histogram(tokens, tokenizer.config.codebook_size)})

    stream = Stream(state.folder / "real", key="", features=part.judges.features, every=params.batch_size)
    judge(stream, real, params.reference_images, params.batch_size, lambda s: stage.progress(s, "real images"))
    data = digest([stage.params.data.held_out.model_dump(), seed, params.reference_images])
    references = {name: Statistics.of(stream, name, data) for name in part.judges.features}

    def fresh(start: int, stop: int) -> tuple[torch.Tensor, list[str]]:
        first = params.reference_images
        images, captions = originals(first + start, first + stop, part.prompts, seed)
        return squares(images, size), captions

    def reconstructed(start: int, stop: int) -> tuple[torch.Tensor, list[str]]:
        images, captions = fresh(start, stop)
        return as_bytes(to_unit(tokenizer.decode(tokenizer.encode(unit(images))[0])).clamp(0, 1).cpu()), captions

    shown = min(params.images, params.real_images)
    metrics: dict[str, float] = {}
    _, captions = fresh(0, shown)
    # Real images come with captions of their own, so the evaluation's categories are not theirs.
    plain = PromptSet(part.name, [], [""] * params.real_images, Judges(part.judges.features, part.judges.scores))
    for name, draw in (("real", fresh), ("reconstruction", reconstructed)):
        row = judged(stage, state, plain, name, draw, params.real_images)
        metrics |= {f"{name}_{key}": value for key, value in metrics_of(stage, plain, row, references).items()}
    with ArtifactWriter(stage.path("reference"), "reference", seed=params.seed, inputs={}) as out:
        for name, statistics in references.items():
            statistics.save(out.file(f"{name}.safetensors"))
        out.tensors("tokens", {"histogram": stream.total("tokens")})
        out.json("metrics", metrics)
        out.tensors("images", {"real": fresh(0, shown)[0], "reconstruction": reconstructed(0, shown)[0]})
        out.table("prompts", pd.DataFrame({"prompt": captions}))
        out.json("skipped", originals.skipped)
    state.remove()


class Images:
    """A dataset's real images, and an account of those that were skipped which outlives a killed stage.

    What a draw skips is written down before its images are used, so that no image counts whose draw was not noted.
    """

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self.dataset, self.path = dataset, path
        self.skipped: list[dict[str, str]] = json.loads(path.read_text()) if path.is_file() else []

    def __call__(self, start: int, stop: int, prompts: list[str], seed: int) -> Originals:
        """`Dataset.originals`."""
        found = self.dataset.originals(start, stop, prompts, seed)
        known = {row["name"] for row in self.skipped}
        if fresh := [row for row in self.dataset.skipped() if row["name"] not in known]:
            self.skipped = sorted([*self.skipped, *fresh], key=lambda row: row["name"])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f"{self.path.name}.tmp")
            temporary.write_text(json.dumps(self.skipped))
            os.replace(temporary, self.path)
        return found


if __name__ == "__main__":
    main("reference", run)
