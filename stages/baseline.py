"""Stage baseline: the evaluation of the base, before any round: the row that every arm is compared with."""

from stages.evaluation import evaluate
from stages.runtime.artifacts import read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """The same artifact as an arm's evaluation, at artifacts/base/evaluation."""
    inputs = {"reference": read_artifact(stage.path("reference"), "reference")}
    backbone = backbone_of(stage)
    evaluate(stage, backbone.policy_weights(), backbone.decoder_weights(), inputs, stage.path("baseline"))


if __name__ == "__main__":
    main("baseline", run)
