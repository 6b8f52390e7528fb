"""Stage prompts: draw a round's training prompts, the same for every arm, and encode them once."""

import pandas as pd

from rank_e.models.backbone import load_backbone
from rank_e.seeds import seed_for
from stages.artifacts import ArtifactWriter
from stages.runtime import Stage, main


def run(stage: Stage) -> None:
    """prompts.parquet (index, prompt, category) and text.safetensors (embeddings [P, T, C], mask [P, T])."""
    backbone = load_backbone(stage.params.backbone.name, stage.params.backbone.base)
    draw = seed_for(stage.seed, "prompts", stage.round)
    pairs = backbone.prompts("train", stage.params.prompts.per_round, draw)
    table = pd.DataFrame(pairs, columns=["prompt", "category"]).rename_axis("index").reset_index()
    embeddings, mask = backbone.encode_text(table["prompt"].tolist())
    with ArtifactWriter(stage.path("prompts"), "prompts", seed=stage.seed, inputs={}) as out:
        out.table("prompts", table)
        out.tensors("text", {"embeddings": embeddings, "mask": mask})


if __name__ == "__main__":
    main("prompts", run)
