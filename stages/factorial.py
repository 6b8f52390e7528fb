"""Stage factorial: {policy of each arm} x {original decoder, each arm's decoder} on the same tokens.

Read along a row: the tokens are the same, so every difference is the decoder's doing. The column "affine" is the
control that a better decoder must beat: the original decoder's images, brightness and contrast matched to real ones.
"""

import torch
from torch import Tensor

from rank_e.data.opening import open_dataset
from rank_e.evaluation.affine import AffineControl
from rank_e.seeds import seed_for
from stages.runtime.artifacts import ArtifactWriter, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.judging import decode, decoded, held_out_set, judged, metrics_of, references_of
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """metrics.json: {"policy arm/decoder arm, original or affine": {metric: value}}."""
    params, backbone = stage.params, backbone_of(stage)
    inputs = {"reference": read_artifact(stage.path("reference"), "reference")}
    base = backbone.decoder_weights()
    decoders = {"original": base}
    for arm in params.factorial.arms:
        for kind in ("evaluation", "decoder"):
            path = stage.path(kind, arm=arm, round=params.factorial.round)
            inputs[f"{arm} {kind}"] = read_artifact(path, kind)
        if params.arm(arm).decoder.train:  # a frozen arm's decoder is the original one
            decoders[arm] = inputs[f"{arm} decoder"].tensors("ema")
    paths = {name: artifact.path for name, artifact in inputs.items()}
    state, part = stage.state(*paths.values()), held_out_set(stage, backbone.image_size)
    references = references_of(inputs["reference"], part)
    prompts = part.prompts[: params.evaluation.real_images]
    dataset = open_dataset(params.data.held_out, backbone.image_size, "data.held_out")
    real = dataset.real_images(prompts, seed_for(stage.seed, "factorial", "reals"))
    tokenizers = {name: backbone.tokenizer(weights) for name, weights in decoders.items()}
    original, batch = tokenizers["original"], params.evaluation.batch_size
    names = (*part.judges.features, *part.judges.scores)
    cells: dict[str, dict[str, float]] = {}
    for arm in params.factorial.arms:
        evaluation = inputs[f"{arm} evaluation"]
        tokens, known = evaluation.tensors("tokens")["tokens"], evaluation.json("metrics")
        # The arm's own evaluation has judged its tokens through the original decoder and through its own.
        cells[f"{arm}/original"] = {name: known[f"{name}@original"] for name in names}
        if arm in tokenizers:
            cells[f"{arm}/{arm}"] = {name: known[name] for name in names}
        fitted = torch.cat([decode(original, rows).cpu() for rows in tokens[: len(real)].split(batch)])
        others = [name for name in tokenizers if name not in ("original", arm)]
        draws = {name: decoded(part, tokens, tokenizers[name]) for name in others}
        draws["affine"] = decoded(part, tokens, original, AffineHalves(fitted, real[: len(fitted)]))
        for name, draw in draws.items():
            stream = judged(stage, state, part, f"{arm}-{name}", draw, len(tokens))
            metrics = metrics_of(stage, part, stream, references, intervals=False)
            cells[f"{arm}/{name}"] = {key: value for key, value in metrics.items() if "/" not in key}
    with ArtifactWriter(stage.path("factorial"), "factorial", seed=stage.seed, inputs=paths) as out:
        out.json("metrics", cells)
    state.remove()


class AffineHalves:
    """The affine control fitted twice, on every second image, so that no image is corrected by its own fit."""

    def __init__(self, images: Tensor, real: Tensor) -> None:
        """The first images of the stream and as many real ones, float32 [N, 3, S, S] in [0, 1]."""
        self.controls = [AffineControl.fit(images[half::2], real[half::2]) for half in (1, 0)]

    def __call__(self, images: Tensor, start: int) -> Tensor:
        """The stream's images from number `start` on, matched to real ones."""
        corrected = torch.empty_like(images)
        for place in (0, 1):
            corrected[place::2] = self.controls[(start + place) % 2](images[place::2])
        return corrected


if __name__ == "__main__":
    main("factorial", run)
