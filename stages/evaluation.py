"""Stage evaluation: an arm after a round, judged on held-out prompts by networks that took no part in training.

The same prompts and the same sampling seeds serve every arm, seed and round, so differences are paired. The same
tokens are judged twice: through the arm's own EMA decoder and, under "...@original", through the base decoder.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rank_e.backbones.protocol import Backbone, PolicyModel
from rank_e.evaluation.sets import PromptSet, open_benchmark
from rank_e.evaluation.stream import Stream
from rank_e.evaluation.tokens import entropy_bits, token_histogram, token_kl
from rank_e.io.pixels import to_bytes
from rank_e.sampling.sampler import SamplingConfig, sample
from rank_e.seeds import seed_for
from stages.runtime.artifacts import Artifact, ArtifactWriter, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.judging import HELD_OUT, decode, decoded, held_out_set, judged, metrics_of, references_of
from stages.runtime.stage import Stage, main
from stages.runtime.state import StageState

Weights = Mapping[str, Tensor]


class TokenDraws:
    """Tokens of prompt sets, int32 [N, L] on the CPU, drawn batch by batch and kept in the stage's state."""

    def __init__(self, stage: Stage, state: StageState, backbone: Backbone, policy: PolicyModel) -> None:
        self.stage, self.state, self.backbone, self.policy = stage, state, backbone, policy
        saved = state.load()
        self.done: dict[str, list[Tensor]] = {name: [tokens] for name, tokens in (saved[0] if saved else {}).items()}

    def of(self, part: PromptSet) -> Tensor:
        """The tokens of all of `part`, by the evaluation's own seeds."""
        params = self.stage.params.evaluation
        config = SamplingConfig(params.guidance, params.temperature, params.top_k, params.top_p)
        rows = self.done.setdefault(part.name, [])
        starts = range(sum(map(len, rows)), len(part.prompts), params.batch_size)
        for start in self.stage.progress(starts, f"sampling {part.name}"):
            prompts = part.prompts[start : start + params.batch_size]
            text, mask = self.backbone.encode_text(prompts)
            places = range(start, start + len(prompts))
            seeds = [seed_for(params.seed, "evaluation", part.name, place) for place in places]
            drawn = sample(self.policy, text, mask, seeds, config, batch_size=params.batch_size)
            rows.append(drawn.tokens.int().cpu())
            if self.state.due():
                self.state.save({name: torch.cat(tokens) for name, tokens in self.done.items()}, {})
        return torch.cat(rows)


def evaluate(stage: Stage, policy: Weights, decoder: Weights, inputs: dict[str, Artifact], target: Path) -> None:
    """Sample, decode through both decoders, judge, and write the evaluation artifact to `target`."""
    params, backbone = stage.params.evaluation, backbone_of(stage)
    state = stage.state(*(artifact.path for artifact in inputs.values()))
    held_out, base = held_out_set(stage, backbone.image_size), backbone.decoder_weights()
    changed = any(not torch.equal(base[name], decoder[name]) for name in base)
    references = references_of(inputs["reference"], held_out)
    draws = TokenDraws(stage, state, backbone, backbone.policy(policy))
    through = {"own": backbone.tokenizer(decoder), "original": backbone.tokenizer(base)}
    folder = Path(stage.params.weights.evaluation)
    metrics: dict[str, float] = {"images": float(len(held_out.prompts))}
    for name in (HELD_OUT, *params.benchmarks):
        part = held_out if name == HELD_OUT else open_benchmark(name, params.benchmarks[name], folder, stage.device)
        tokens = draws.of(part)
        stream = judged(stage, state, part, "own", decoded(part, tokens, through["own"]), len(tokens))
        own = metrics_of(stage, part, stream, references)
        unchanged = own
        if changed:
            draw = decoded(part, tokens, through["original"])
            original = judged(stage, state, part, "original", draw, len(tokens))
            unchanged = metrics_of(stage, part, original, references, intervals=False)
        # The intervals are the arm's own; the same tokens through the base decoder are a paired control of the values.
        values = {key: value for key, value in unchanged.items() if not key.endswith(("_low", "_high"))}
        metrics |= own | {f"{key}@original": value for key, value in values.items()}
        if name == HELD_OUT:
            table, kept = scores_table(part, stream), tokens
    real = inputs["reference"].tensors("tokens")["histogram"]
    histogram = token_histogram(kept, len(real))
    metrics |= {"token_kl": token_kl(histogram, real), "token_entropy": entropy_bits(histogram)}
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with ArtifactWriter(target, "evaluation", seed=params.seed, inputs=paths) as out:
        out.json("metrics", metrics)
        out.table("samples", table)
        out.tensors("tokens", {"tokens": kept})
        shown = kept[: params.images]
        images = {name: to_bytes(decode(tokenizer, shown)).cpu() for name, tokenizer in through.items()}
        out.tensors("images", {"images": images["own"], "original": images["original"]})
    state.remove()


def scores_table(part: PromptSet, stream: Stream) -> pd.DataFrame:
    """A row an image: prompt, category and every score."""
    columns = [columns for _, columns in stream.rows(*part.judges.scores)]
    scores = {name: np.concatenate([rows[name] for rows in columns]) for name in part.judges.scores}
    return pd.DataFrame({"prompt": part.prompts, "category": part.categories, **scores})


def run(stage: Stage) -> None:
    """metrics.json, samples.parquet, tokens and images of the arm's EMA policy and EMA decoder."""
    inputs = {
        "reference": read_artifact(stage.path("reference"), "reference"),
        "policy": read_artifact(stage.path("policy"), "policy"),
        "decoder": read_artifact(stage.path("decoder"), "decoder"),
    }
    evaluate(
        stage,
        inputs["policy"].tensors("ema"),
        inputs["decoder"].tensors("ema"),
        inputs,
        stage.path("evaluation"),
    )


if __name__ == "__main__":
    main("evaluation", run)
