"""Stage factorial: {policy of each arm} x {original decoder, each arm's decoder} on the same tokens.

Read along a row: the tokens are the same, so every difference is the decoder's doing.
"""

from rank_e.metrics.suite import Reference
from rank_e.models.backbone import load_backbone
from stages.artifacts import ArtifactWriter, read_artifact
from stages.evaluation import decode, judge
from stages.runtime import Stage, main

KEYS = ("clip", "fd", "fd_mid", "fd_patch", "accuracy", "reward")


def run(stage: Stage) -> None:
    """metrics.json: {"policy arm/decoder arm or original": {metric: value}}."""
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
    cells = {}
    for arm in params.factorial.arms:
        tokens = inputs[f"{arm} evaluation"].tensors("tokens")["tokens"]
        for name, weights in decoders.items():
            pictures = decode(backbone, weights, tokens, params.evaluation.batch_size)
            metrics, _ = judge(stage, backbone, reference, pictures, bootstrap=0)
            cells[f"{arm}/{name}"] = {key: metrics[key] for key in KEYS}
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with ArtifactWriter(stage.path("factorial"), "factorial", seed=stage.seed, inputs=paths) as out:
        out.json("metrics", cells)


if __name__ == "__main__":
    main("factorial", run)
