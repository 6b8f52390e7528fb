"""Stage reference: statistics of real held-out pictures, and how real and reconstructed ones score themselves.

In the embedded world the real set has exactly the evaluation's prompt mix: another mix alone would cost several points
of Frechet distance.
"""

import pandas as pd
import torch

from rank_e.judges.base import as_bytes
from rank_e.judges.reference import Statistics
from rank_e.judges.sets import PromptSet
from rank_e.judges.stream import Batch, Stream, judge
from rank_e.judges.suite import Judges
from rank_e.metrics.tokens import token_histogram
from rank_e.models.tokenizer import to_unit
from rank_e.seeds import seed_for
from stages.artifacts import ArtifactWriter
from stages.backbone import backbone_of
from stages.judging import digest, held_out_set, judged, metrics_of, squares
from stages.runtime import Stage, main
from stages.source import source_of


@torch.no_grad()
def run(stage: Stage) -> None:
    """One file of moments a distance, tokens.safetensors (the real histogram), metrics.json, pictures, prompts.parquet.

    metrics: real_... and reconstruction_..., what a perfect generator and a perfect policy would score at
    evaluation.real_pictures pictures.
    """
    params, backbone = stage.params.evaluation, backbone_of(stage)
    state, part = stage.state(), held_out_set(stage, backbone.image_size)
    source = source_of(stage, "held_out", backbone.image_size)
    seed = seed_for(params.seed, "reference")
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    size, device = tokenizer.config.image_size, stage.device

    def unit(pictures: torch.Tensor) -> torch.Tensor:
        return pictures.to(device).float() / 255 * 2 - 1

    def real(start: int, stop: int) -> Batch:
        pictures, captions = source.originals(start, stop, part.prompts, seed)
        tokens = tokenizer.encode(unit(squares(pictures, size)))[1].cpu()
        return Batch(pictures, captions, totals={"tokens": token_histogram(tokens, tokenizer.config.codebook_size)})

    stream = Stream(state.folder / "real", key="", features=part.judges.features, every=params.batch_size)
    judge(stream, real, params.reference_pictures, params.batch_size, lambda s: stage.progress(s, "real pictures"))
    data = digest([stage.params.data.held_out.model_dump(), seed, params.reference_pictures])
    references = {name: Statistics.of(stream, name, data) for name in part.judges.features}

    def fresh(start: int, stop: int) -> tuple[torch.Tensor, list[str]]:
        first = params.reference_pictures
        pictures, captions = source.originals(first + start, first + stop, part.prompts, seed)
        return squares(pictures, size), captions

    def reconstructed(start: int, stop: int) -> tuple[torch.Tensor, list[str]]:
        pictures, captions = fresh(start, stop)
        return as_bytes(to_unit(tokenizer.decode(tokenizer.encode(unit(pictures))[0])).clamp(0, 1).cpu()), captions

    shown = min(params.pictures, params.real_pictures)
    metrics: dict[str, float] = {}
    _, captions = fresh(0, shown)
    # Real pictures come with captions of their own, so the evaluation's categories are not theirs.
    plain = PromptSet(part.name, [], [""] * params.real_pictures, Judges(part.judges.features, part.judges.scores))
    for name, draw in (("real", fresh), ("reconstruction", reconstructed)):
        row = judged(stage, state, plain, name, draw, params.real_pictures)
        metrics |= {f"{name}_{key}": value for key, value in metrics_of(stage, plain, row, references).items()}
    with ArtifactWriter(stage.path("reference"), "reference", seed=params.seed, inputs={}) as out:
        for name, statistics in references.items():
            statistics.save(out.file(f"{name}.safetensors"))
        out.tensors("tokens", {"histogram": stream.total("tokens")})
        out.json("metrics", metrics)
        out.tensors("pictures", {"real": fresh(0, shown)[0], "reconstruction": reconstructed(0, shown)[0]})
        out.table("prompts", pd.DataFrame({"prompt": captions}))
        out.json("skipped", source.skipped())
    state.remove()


if __name__ == "__main__":
    main("reference", run)
