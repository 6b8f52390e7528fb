"""Stage prompts: draw a round's training prompts, the same for every arm, and encode them once."""

import pandas as pd

from rank_e.seeds import seed_for
from stages.runtime.artifacts import ArtifactWriter
from stages.runtime.backbone import backbone_of
from stages.runtime.source import source_of
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """prompts.parquet (index, prompt, category), text.safetensors (embeddings [P, T, ...], mask [P, T]), metrics.json.

    metrics: `truncated`, the number of prompts that are longer than the text encoder reads; `skipped`, the number of
    samples that could not be read, which skipped.json names.
    """
    backbone = backbone_of(stage)
    source = source_of(stage, "training", backbone.image_size)
    draw = seed_for(stage.seed, "prompts", stage.round)
    pairs = source.prompts(stage.params.prompts.per_round, draw)
    table = pd.DataFrame(pairs, columns=["prompt", "category"]).rename_axis("index").reset_index()
    prompts = table["prompt"].tolist()
    embeddings, mask = backbone.encode_text(prompts)
    skipped = source.skipped()
    with ArtifactWriter(stage.path("prompts"), "prompts", seed=stage.seed, inputs={}) as out:
        out.table("prompts", table)
        out.tensors("text", {"embeddings": embeddings, "mask": mask})
        out.json("metrics", {"truncated": len(backbone.truncated(prompts)), "skipped": len(skipped)})
        out.json("skipped", skipped)


if __name__ == "__main__":
    main("prompts", run)
