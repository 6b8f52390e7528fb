"""Stage reference: statistics of real held-out images, and how real and reconstructed ones score themselves.

In the embedded world the real set has exactly the evaluation's prompt mix: another mix alone would cost several points
of Frechet distance.
"""

from dataclasses import replace

import pandas as pd
import torch

from rank_e.data.opening import open_dataset
from rank_e.evaluation.base import digest
from rank_e.evaluation.captions import CaptionSums, save_captions
from rank_e.evaluation.prompt_sets import held_out_set
from rank_e.evaluation.reference import MATCHED, Statistics
from rank_e.evaluation.resize import squares
from rank_e.evaluation.stream import ImageBatch, ImageStream, evaluate_stream
from rank_e.evaluation.tokens import token_histogram
from stages.real_images import RealImages, evaluate_reconstructions, real_evaluator
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main


@torch.no_grad()
def run(stage: Stage) -> None:
    """One file of moments a distance, tokens.safetensors (the real histogram), metrics.json, images, prompts.parquet.
    For matched distances one more file holds the sums of each caption's images.

    metrics: {"real": {metric: ...}, "reconstruction": {...}}, what a perfect generator and a perfect policy would score
    at evaluation.real_images images.
    """
    params, backbone, state = stage.memory.batched(stage.params.evaluation), backbone_of(stage), stage.state()
    dataset = open_dataset(stage.params.data.held_out, backbone.image_size, "data.held_out")
    held_out = held_out_set(stage.params, dataset, stage.device)
    images = RealImages(stage, dataset, held_out.prompts, state.folder / "skipped.json")
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    size = tokenizer.config.image_size

    def reference(start: int, stop: int) -> ImageBatch:
        found, captions = images.originals(start, stop)
        tokens = tokenizer.encode(images.signed(squares(found, size)))[1].cpu()
        return ImageBatch(found, captions, totals={"tokens": token_histogram(tokens, tokenizer.config.codebook_size)})

    features = held_out.suite.features
    stream = ImageStream(state.folder / "real", key=state.folder.name, features=features, every=params.batch_size)
    evaluate_stream(
        stream, reference, params.reference_images, params.batch_size, lambda s: stage.progress(s, "real images")
    )
    data = digest([stage.params.data.held_out.model_dump(), images.seed, params.reference_images])
    references = {name: Statistics.of(stream, name, data, stage.device) for name in features}
    if (matched := params.matched) is not None:
        for name in matched.distances:
            sums = CaptionSums.of(stream, name, held_out.prompts, matched.least, stage.device)
            references[name] = replace(references[name], captions=sums)

    shown = min(params.images, params.real_images)
    _, captions = images.fresh(0, shown, size)
    evaluator = real_evaluator(stage, held_out, references)
    real = evaluator.evaluate_images(
        lambda start, stop: images.fresh(start, stop, size), images.count, state.folder / f"{held_out.name}-real"
    )
    folder = state.folder / f"{held_out.name}-reconstruction"
    metrics = {
        "real": real,
        "reconstruction": evaluate_reconstructions(stage, images, tokenizer, evaluator, folder),
    }
    with stage.writer("reference", seed=params.seed, inputs={}) as out:
        for name, statistics in references.items():
            statistics.save(out.file(f"{name}.safetensors"))
        if by_caption := {name: item.captions for name, item in references.items() if item.captions is not None}:
            save_captions(out.file(MATCHED), by_caption)
        out.tensors("tokens", {"histogram": stream.total("tokens")})
        out.json("metrics", metrics)
        shows = {
            "real": images.fresh(0, shown, size)[0],
            "reconstruction": images.reconstructed(0, shown, tokenizer)[0],
        }
        out.tensors("images", shows)
        out.table("prompts", pd.DataFrame({"prompt": captions}))
        out.json("skipped", images.skipped)
    state.remove()


if __name__ == "__main__":
    main("reference", run)
