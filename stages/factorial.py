"""Stage factorial: the same tokens through other decoders, for one arm after one round.

Read along a row: the tokens are the same, so every difference is the decoder's doing. An arm that trains its decoder
draws the control's tokens too, which is the clean test: on its own tokens the policy has adapted to its decoder. The
column "affine" is what a better decoder must beat: the original decoder's images, brightness and contrast matched to
real ones. The row "real" has tokens of real images: the decoder must not forget them.
"""

from typing import Any

import torch
from torch import Tensor

from rank_e.backbones.protocol import TokenizerModel
from rank_e.data.opening import open_dataset
from rank_e.evaluation.affine import AffineHalves
from rank_e.evaluation.evaluator import Correction, decode
from rank_e.evaluation.prompt_sets import held_out_set
from rank_e.evaluation.reference import load_references
from rank_e.evaluation.summary import without_categories
from rank_e.seeds import seed_for
from stages.evaluation import evaluator_of
from stages.real_images import RealImages, evaluate_reconstructions, real_evaluator
from stages.runtime.artifacts import read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main

Row = dict[str, dict[str, Any]]
"""Decoder (an arm's name, "original" or "affine") -> {metric: {"value": ...}}."""


def run(stage: Stage) -> None:
    """metrics.json: {whose tokens: {whose decoder: {metric: {"value": ...}}}}.

    Tokens of the arm and, where its decoder has changed, of the control and of "real" images (metrics: the distances
    and "l1", the mean absolute error in [0, 1]). skipped.json names the real images that could not be read.
    """
    params, backbone, arm, control = stage.params, backbone_of(stage), stage.arm, stage.params.factorial.arms[0]
    inputs = {
        "reference": read_artifact(stage.path("reference"), "reference"),
        "evaluation": read_artifact(stage.path("evaluation"), "evaluation"),
        "control evaluation": read_artifact(stage.path("evaluation", arm=control), "evaluation"),
        "decoder": read_artifact(stage.path("decoder"), "decoder"),
    }
    paths = {name: artifact.path for name, artifact in inputs.items()}
    state = stage.state(*paths.values())
    dataset = open_dataset(params.data.held_out, backbone.image_size, "data.held_out")
    held_out = held_out_set(params, dataset, stage.device)
    suite = held_out.suite
    inputs["reference"].verify()
    references = load_references(inputs["reference"].path, suite.features, suite.matched_distances)
    evaluator = evaluator_of(stage, held_out, references)
    base, decoder = backbone.decoder_weights(), inputs["decoder"].tensors("ema")
    changed = any(not torch.equal(base[name], decoder[name]) for name in base)  # a frozen arm's is the original one
    original, names = backbone.tokenizer(base), [row["key"] for row in held_out.described]

    def values(metrics: dict[str, Any]) -> dict[str, Any]:
        return without_categories({name: metrics[name] for name in names if name in metrics})

    def through(tokenizer: TokenizerModel, tokens: Tensor, name: str, correct: Correction | None = None) -> Any:
        folder = state.folder / f"{held_out.name}-{name}"
        return values(evaluator.evaluate(tokenizer, tokens, folder, correct=correct, intervals=False))

    # The arm's own evaluation has its tokens through the original decoder and through its own.
    known = inputs["evaluation"].json("metrics")
    tokens = inputs["evaluation"].tensors("tokens")["tokens"]
    prompts = held_out.prompts[: params.evaluation.real_images]
    real = dataset.real_images(prompts, seed_for(stage.seed, "factorial", "reals"))[: len(tokens)]
    batches = tokens[: len(real)].split(stage.memory.at_once(params.evaluation.batch_size))
    fitted = torch.cat([decode(original, batch).cpu() for batch in batches])
    affine = through(original, tokens, f"{arm}-affine", AffineHalves(fitted, real))
    table: dict[str, Row] = {arm: {"original": values(known["original"]), "affine": affine}}
    skipped: list[dict[str, str]] = []
    if changed:
        own = backbone.tokenizer(decoder)
        table[arm][arm] = values(known)
        if arm != control:
            drawn = inputs["control evaluation"].tensors("tokens")["tokens"]
            table[control] = {arm: through(own, drawn, f"{control}-{arm}")}
        images = RealImages(stage, dataset, held_out.prompts, state.folder / "skipped.json")
        reader, folder = real_evaluator(stage, held_out, references), state.folder / "real"
        found = evaluate_reconstructions(stage, images, own, reader, folder, intervals=False)
        table["real"] = {arm: {name: found[name] for name in (*held_out.suite.features, "l1")}}
        skipped = images.skipped
    with stage.writer("factorial", inputs=paths) as out:
        out.json("metrics", table)
        out.json("skipped", skipped)
    state.remove()


if __name__ == "__main__":
    main("factorial", run)
