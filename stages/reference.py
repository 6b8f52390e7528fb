"""Stage reference: real held-out pictures, their statistics, and how well the tokenizer alone reconstructs them.

The real set has exactly the evaluation's prompt mix: another mix alone would cost several points of Frechet distance.
"""

import torch

from rank_e.metrics.suite import build_reference
from rank_e.models.backbone import load_backbone
from rank_e.models.tokenizer import to_unit
from rank_e.seeds import seed_for
from stages.artifacts import ArtifactWriter
from stages.evaluation import as_bytes, held_out_prompts, judge
from stages.runtime import Stage, main


@torch.no_grad()
def run(stage: Stage) -> None:
    """reference.safetensors, metrics.json (real_..., reconstruction_...), pictures, prompts.parquet."""
    params = stage.params.evaluation
    backbone = load_backbone(stage.params.backbone.name, stage.params.backbone.base)
    table = held_out_prompts(backbone, params)
    prompts = table["prompt"].tolist()
    repeats = -(-params.reference_pictures // len(prompts))
    reals = [backbone.real_pictures(prompts, seed_for(params.seed, "reference", copy)) for copy in range(repeats)]
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    encoded = [tokenizer.encode(part * 2 - 1)[1] for real in reals for part in real.split(params.batch_size)]
    reference = build_reference(
        backbone.evaluator,
        torch.cat(reals),
        torch.cat(encoded),
        tokenizer.config.codebook_size,
        seed=params.seed,
    )
    # A second real set of the evaluation's size: what a perfect generator would score at this sample size.
    fresh = backbone.real_pictures(prompts, seed_for(params.seed, "real", "row"))
    recon = [
        to_unit(tokenizer.decode(tokenizer.encode(p * 2 - 1)[0])).clamp(0, 1) for p in fresh.split(params.batch_size)
    ]
    reconstructions = torch.cat(recon)
    metrics: dict[str, float] = {}
    for name, pictures in (("real", fresh), ("reconstruction", reconstructions)):
        row, _ = judge(stage, backbone, reference, pictures, params.bootstrap)
        metrics |= {f"{name}_{key}": value for key, value in row.items()}
    with ArtifactWriter(stage.path("reference"), "reference", seed=params.seed, inputs={}) as out:
        out.tensors("reference", reference.to_tensors())
        out.json("metrics", metrics)
        out.tensors(
            "pictures",
            {
                "real": as_bytes(fresh[: params.pictures]),
                "reconstruction": as_bytes(reconstructions[: params.pictures]),
            },
        )
        out.table("prompts", table[: params.pictures])


if __name__ == "__main__":
    main("reference", run)
