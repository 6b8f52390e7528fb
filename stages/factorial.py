"""Stage factorial: {policy of each arm} x {original decoder, each arm's decoder} on the same tokens.

Read along a row: the tokens are the same, so every difference is the decoder's doing. The column "affine" is the
control that a better decoder must beat: the original decoder's pictures, brightness and contrast matched to real ones.
"""

import torch

from rank_e.metrics.affine import AffineControl
from rank_e.metrics.suite import Reference
from rank_e.models.backbone import load_backbone
from rank_e.seeds import seed_for
from stages.artifacts import ArtifactWriter, read_artifact
from stages.evaluation import decode, held_out_prompts, judge
from stages.runtime import Stage, main

KEYS = ("clip", "fd", "fd_mid", "fd_patch", "accuracy", "reward")


def run(stage: Stage) -> None:
    """metrics.json: {"policy arm/decoder arm, original or affine": {metric: value}}."""
    params = stage.params
    backbone = load_backbone(params.backbone.name, params.backbone.base)
    inputs = {"reference": read_artifact(stage.path("reference"), "reference")}
    reference = Reference.from_tensors(inputs["reference"].tensors("reference"))
    decoders = {"original": backbone.decoder_weights()}
    for arm in params.factorial.arms:
        for kind in ("evaluation", "decoder"):
            path = stage.path(kind, arm=arm, round=params.factorial.round)
            inputs[f"{arm} {kind}"] = read_artifact(path, kind)
        if params.arm(arm).decoder.train:  # a frozen arm's decoder is the original one
            decoders[arm] = inputs[f"{arm} decoder"].tensors("ema")
    batch = params.evaluation.batch_size
    prompts = held_out_prompts(backbone, params.evaluation)["prompt"].tolist()
    real = backbone.real_pictures(prompts, seed_for(stage.seed, "factorial", "reals"))
    cells = {}
    for arm in params.factorial.arms:
        tokens = inputs[f"{arm} evaluation"].tensors("tokens")["tokens"]
        pictures_by = {name: decode(backbone, weights, tokens, batch) for name, weights in decoders.items()}
        pictures_by["affine"] = affine(pictures_by["original"], real)
        for name, pictures in pictures_by.items():
            metrics, _ = judge(stage, backbone, reference, pictures, bootstrap=0)
            cells[f"{arm}/{name}"] = {key: metrics[key] for key in KEYS}
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with ArtifactWriter(stage.path("factorial"), "factorial", seed=stage.seed, inputs=paths) as out:
        out.json("metrics", cells)


def affine(pictures: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 3, H, W] matched to `real`: every second one by a fit on the others, so that none fits itself."""
    corrected = torch.empty_like(pictures)
    for half in (0, 1):
        control = AffineControl.fit(pictures[1 - half :: 2], real[1 - half :: 2])
        corrected[half::2] = control(pictures[half::2])
    return corrected


if __name__ == "__main__":
    main("factorial", run)
