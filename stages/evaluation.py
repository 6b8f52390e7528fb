"""Stage evaluation: an arm after a round, on held-out prompts, by networks that took no part in training.

The same prompts and the same sampling seeds serve every arm, seed and round, so differences are paired. The same
tokens are evaluated twice: through the arm's own EMA decoder and, under "original", through the base decoder.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rank_e.data.opening import open_dataset
from rank_e.evaluation.evaluator import Evaluator, decode
from rank_e.evaluation.metric import ALWAYS, TOKEN_ENTROPY, TOKEN_KL
from rank_e.evaluation.prompt_sets import PromptSet, held_out_set, open_benchmark
from rank_e.evaluation.reference import load_references
from rank_e.evaluation.sampling import sample_prompt_set
from rank_e.evaluation.summary import without_intervals
from rank_e.evaluation.tokens import entropy_bits, token_histogram, token_kl
from rank_e.io.pixels import to_bytes
from stages.runtime.artifacts import Artifact, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.sharing import once
from stages.runtime.stage import Stage, main

Weights = Mapping[str, Tensor]


def evaluate(stage: Stage, policy: Weights, decoder: Weights, inputs: dict[str, Artifact], target: Path) -> None:
    """Sample, evaluate through both decoders, and write the evaluation artifact to `target`."""
    params, backbone = stage.memory.batched(stage.params.evaluation), backbone_of(stage)
    state = stage.state(*(artifact.path for artifact in inputs.values()))
    base = backbone.decoder_weights()
    changed = any(not torch.equal(base[name], decoder[name]) for name in base)
    own, original = backbone.tokenizer(decoder), backbone.tokenizer(base)
    model, saved = backbone.policy(policy), state.load()
    dataset = open_dataset(stage.params.data.held_out, backbone.image_size, "data.held_out")
    held_out = held_out_set(stage.params, dataset, stage.device)
    inputs["reference"].verify()
    references = load_references(inputs["reference"].path, held_out.suite.features, held_out.suite.matched_distances)
    known = saved[0] if saved else {}

    def tokens_of(prompt_set: PromptSet) -> Tensor:
        name = prompt_set.name

        def sampled(rows: list[Tensor]) -> None:
            if state.due():
                state.save(known | {name: torch.cat(rows)}, {})

        def progress(steps: range) -> Iterator[int]:
            return stage.progress(steps, f"sampling {name}")

        fast, done = stage.params.runtime.fast, known.get(name)
        return sample_prompt_set(
            backbone, model, prompt_set, params, fast=fast, done=done, sampled=sampled, progress=progress
        )

    metrics: dict[str, Any] = {}
    unchanged: dict[str, Any] = {}
    described: list[dict[str, Any]] = []
    for prompt_set in prompt_sets(stage, held_out):
        name, evaluator = prompt_set.name, evaluator_of(stage, prompt_set, references)
        known[name] = tokens_of(prompt_set)
        found = evaluator.evaluate(own, known[name], state.folder / f"{name}-own")
        # The intervals are the arm's own; the same tokens through the base decoder are a paired control of the values.
        if changed:
            folder = state.folder / f"{name}-original"
            unchanged |= evaluator.evaluate(original, known[name], folder, intervals=False)
        else:
            unchanged |= without_intervals(found)
        metrics |= found
        described += prompt_set.described
    tokens, real = known[held_out.name], inputs["reference"].tensors("tokens")["histogram"]
    histogram = token_histogram(tokens, len(real))
    metrics |= {"token_kl": {"value": token_kl(histogram, real)}, "token_entropy": {"value": entropy_bits(histogram)}}
    described += [TOKEN_KL.described("token_kl", "tokens"), TOKEN_ENTROPY.described("token_entropy", "tokens")]
    scores = evaluator_of(stage, held_out, references).scores(state.folder / f"{held_out.name}-own")
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with stage.writer("evaluation", target, seed=params.seed, inputs=paths) as out:
        out.json("metrics", metrics | {"images": len(tokens), "original": unchanged})
        out.json("descriptions", sorted(described, key=lambda row: row["key"] in ALWAYS))
        out.table("samples", pd.DataFrame({"prompt": held_out.prompts, "category": held_out.categories, **scores}))
        out.tensors("tokens", {"tokens": tokens})
        shown, tokenizers = tokens[: params.images], {"images": own, "original": original}
        out.tensors("images", {name: to_bytes(decode(item, shown)).cpu() for name, item in tokenizers.items()})
    state.remove()


def prompt_sets(stage: Stage, held_out: PromptSet) -> Iterator[PromptSet]:
    """The held-out prompts, then each benchmark; its networks are loaded only when it is its turn."""
    yield held_out
    for name, section in stage.params.evaluation.benchmarks.items():
        yield open_benchmark(name, section, Path(stage.params.weights.evaluation), stage.device)


def evaluator_of(stage: Stage, prompt_set: PromptSet, references: Mapping[str, Any]) -> Evaluator:
    """The evaluator of a prompt set with the params of `evaluation`."""
    params = stage.memory.batched(stage.params.evaluation)
    return Evaluator(
        prompt_set, references, params.batch_size, params.seed, params.bootstrap, stage.device, stage.progress
    )


def run(stage: Stage) -> None:
    """metrics, their descriptions, samples, tokens and images of the arm's EMA policy and EMA decoder."""
    inputs = {kind: read_artifact(stage.path(kind), kind) for kind in ("reference", "policy", "decoder")}
    policy, decoder = inputs["policy"].tensors("ema"), inputs["decoder"].tensors("ema")
    once(stage, inputs, lambda: evaluate(stage, policy, decoder, inputs, stage.path("evaluation")))


if __name__ == "__main__":
    main("evaluation", run)
