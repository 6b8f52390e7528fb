"""Stage prompts: choose a round's training prompts, the same for every arm, and encode them once."""

import pandas as pd

from rank_e.data.opening import open_dataset
from rank_e.seeds import seed_for
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """prompts.parquet (index, prompt, category), text.safetensors (embeddings [P, T, ...], mask [P, T]), metrics.json.

    metrics: `truncated`, the number of prompts that are longer than the text encoder reads; `skipped`, the number of
    samples that could not be read, which skipped.json names.
    """
    backbone = backbone_of(stage)
    dataset = open_dataset(stage.params.data.training, backbone.image_size, "data.training")
    rows = dataset.prompts(stage.params.prompts.per_round, seed_for(stage.seed, "prompts", stage.round))
    table = pd.DataFrame(rows, columns=["prompt", "category"]).rename_axis("index").reset_index()
    prompts = table["prompt"].tolist()
    embeddings, mask = backbone.encode_text(prompts)
    skipped = dataset.skipped()
    with stage.writer("prompts", inputs={}) as out:
        out.table("prompts", table)
        out.tensors("text", {"embeddings": embeddings, "mask": mask})
        out.json("metrics", {"truncated": len(backbone.truncated(prompts)), "skipped": len(skipped)})
        out.json("skipped", skipped)


if __name__ == "__main__":
    main("prompts", run)
