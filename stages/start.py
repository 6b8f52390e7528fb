"""Stage start: round 0 of an arm, the base policy and the base decoder as the artifacts that round 1 reads."""

from stages.artifacts import ArtifactWriter
from stages.backbone import backbone_of
from stages.runtime import Stage, main


def run(stage: Stage) -> None:
    """policy/ and decoder/ with online and EMA weights alike, and ranking/ without statistics: nothing was done yet."""
    backbone = backbone_of(stage)
    for kind, weights, counter in (
        ("policy", backbone.policy_weights(), "updates"),
        ("decoder", backbone.decoder_weights(), "steps"),
    ):
        with ArtifactWriter(stage.path(kind, round=0), kind, seed=stage.seed, inputs={}) as out:
            out.tensors("online", weights)
            out.tensors("ema", weights)
            out.json("progress", {counter: 0})
    with ArtifactWriter(stage.path("ranking", round=0), "ranking", seed=stage.seed, inputs={}) as out:
        out.json("rewards", {})


if __name__ == "__main__":
    main("start", run)
