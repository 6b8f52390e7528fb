"""Stage start: round 0 of an arm, the base policy and the base decoder as the artifacts that round 1 reads."""

from rank_e.models.backbone import load_backbone
from stages.artifacts import ArtifactWriter
from stages.runtime import Stage, main


def run(stage: Stage) -> None:
    """policy/ and decoder/ with online and EMA weights alike; no optimiser state, since nothing was updated yet."""
    backbone = load_backbone(stage.params.backbone.name, stage.params.backbone.base)
    for kind, weights, counter in (
        ("policy", backbone.policy_weights(), "updates"),
        ("decoder", backbone.decoder_weights(), "steps"),
    ):
        with ArtifactWriter(stage.path(kind, round=0), kind, seed=stage.seed, inputs={}) as out:
            out.tensors("online", weights)
            out.tensors("ema", weights)
            out.json("progress", {counter: 0})


if __name__ == "__main__":
    main("start", run)
