"""Stage baseline: the evaluation of the base, before any round: the row that every arm is compared with."""

from rank_e.models.backbone import load_backbone
from stages.artifacts import read_artifact
from stages.evaluation import evaluate
from stages.runtime import Stage, main


def run(stage: Stage) -> None:
    """The same artifact as an arm's evaluation, at artifacts/base/evaluation."""
    backbone = load_backbone(stage.params.backbone.name, stage.params.backbone.base)
    inputs = {"reference": read_artifact(stage.path("reference"), "reference")}
    evaluate(stage, backbone.policy_weights(), backbone.decoder_weights(), inputs, stage.path("baseline"))


if __name__ == "__main__":
    main("baseline", run)
