"""Stage start: round 0 of an arm, the SFT policy and the base decoder as the artifacts that round 1 reads."""

from stages.runtime.artifacts import read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """policy/ and decoder/ with online and EMA weights alike, and ranking/ without statistics: nothing was done yet.

    The policy is the SFT's EMA, which is the base where nothing was trained; its updates are counted from here.
    """
    start = read_artifact(stage.path("sft"), "policy")
    for kind, weights, counter, inputs in (
        ("policy", start.tensors("ema"), "updates", {"sft": start.path}),
        ("decoder", backbone_of(stage).decoder_weights(), "steps", {}),
    ):
        with stage.writer(kind, stage.path(kind, round=0), inputs=inputs) as out:
            out.tensors("online", weights)
            out.tensors("ema", weights)
            out.json("progress", {counter: 0})
    with stage.writer("ranking", stage.path("ranking", round=0), inputs={}) as out:
        out.json("rewards", {})


if __name__ == "__main__":
    main("start", run)
