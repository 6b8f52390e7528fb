"""Stage sft_evaluation: the arms' common start, the SFT policy with the base decoder, before any round.

With `sft.train: false` the start is the base, and the baseline's evaluation is handed on.
"""

from stages.evaluation import evaluate
from stages.runtime.artifacts import read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """The same artifact as the baseline's, at artifacts/sft/s<seed>/evaluation."""
    target = stage.path("sft_evaluation")
    if not stage.params.sft.train:
        baseline = read_artifact(stage.path("baseline"), "evaluation")
        seed, inputs = stage.params.evaluation.seed, {"baseline": baseline.path}
        used = {"sft": {"train": False}}
        with stage.writer("evaluation", target, seed=seed, inputs=inputs, params=used) as out:
            out.copy(baseline)
        return
    artifacts = {
        "reference": read_artifact(stage.path("reference"), "reference"),
        "policy": read_artifact(stage.path("sft"), "policy"),
    }
    evaluate(stage, artifacts["policy"].tensors("ema"), backbone_of(stage).decoder_weights(), artifacts, target)


if __name__ == "__main__":
    main("sft_evaluation", run)
