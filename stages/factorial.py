"""Stage factorial: {policy of each arm} x {original decoder, each arm's decoder} on the same tokens.

Read along a row: the tokens are the same, so every difference is the decoder's doing. The column "affine" is the
control that a better decoder must beat: the original decoder's images, brightness and contrast matched to real ones.
"""

from typing import Any

import torch

from rank_e.data.opening import open_dataset
from rank_e.evaluation.affine import AffineHalves
from rank_e.evaluation.evaluator import decode
from rank_e.evaluation.prompt_sets import held_out_set
from rank_e.evaluation.reference import load_references
from rank_e.evaluation.summary import without_categories
from rank_e.seeds import seed_for
from stages.evaluation import evaluator_of
from stages.runtime.artifacts import ArtifactWriter, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """metrics.json: {policy arm: {decoder arm, "original" or "affine": {metric: {"value": ...}}}}."""
    params, backbone = stage.params, backbone_of(stage)
    inputs = {"reference": read_artifact(stage.path("reference"), "reference")}
    decoders = {"original": backbone.decoder_weights()}
    for arm in params.factorial.arms:
        for kind in ("evaluation", "decoder"):
            path = stage.path(kind, arm=arm, round=params.factorial.round)
            inputs[f"{arm} {kind}"] = read_artifact(path, kind)
        if params.arm(arm).decoder.train:  # a frozen arm's decoder is the original one
            decoders[arm] = inputs[f"{arm} decoder"].tensors("ema")
    paths = {name: artifact.path for name, artifact in inputs.items()}
    state = stage.state(*paths.values())
    dataset = open_dataset(params.data.held_out, backbone.image_size, "data.held_out")
    held_out = held_out_set(params, dataset, stage.device)
    suite = held_out.suite
    references = load_references(inputs["reference"].path, suite.features, suite.matched_distances)
    evaluator = evaluator_of(stage, held_out, references)
    prompts = held_out.prompts[: params.evaluation.real_images]
    real = dataset.real_images(prompts, seed_for(stage.seed, "factorial", "reals"))
    tokenizers = {name: backbone.tokenizer(weights) for name, weights in decoders.items()}
    original, names = tokenizers["original"], [row["key"] for row in held_out.described]

    def values(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
        return without_categories({name: metrics[name] for name in names if name in metrics})

    table: dict[str, dict[str, Any]] = {}
    for arm in params.factorial.arms:
        tokens = inputs[f"{arm} evaluation"].tensors("tokens")["tokens"]
        # The arm's own evaluation has its tokens through the original decoder and through its own.
        known = inputs[f"{arm} evaluation"].json("metrics")
        row = {"original": values(known["original"])} | ({arm: values(known)} if arm in tokenizers else {})
        batches = tokens[: len(real)].split(params.evaluation.batch_size)
        fitted = torch.cat([decode(original, batch).cpu() for batch in batches])
        for name in [*(name for name in tokenizers if name not in row), "affine"]:
            correct = AffineHalves(fitted, real[: len(fitted)]) if name == "affine" else None
            folder = state.folder / f"{held_out.name}-{arm}-{name}"
            tokenizer = tokenizers.get(name, original)
            row[name] = values(evaluator.evaluate(tokenizer, tokens, folder, correct=correct, intervals=False))
        table[arm] = row
    with ArtifactWriter(stage.path("factorial"), "factorial", seed=stage.seed, inputs=paths) as out:
        out.json("metrics", table)
    state.remove()


if __name__ == "__main__":
    main("factorial", run)
