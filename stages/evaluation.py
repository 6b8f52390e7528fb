"""Stage evaluation: an arm after a round, judged on held-out prompts by networks that took no part in training.

The same prompts and the same sampling seeds serve every arm, seed and round, so differences are paired. The same
tokens are judged twice: through the arm's own EMA decoder and, under "...@original", through the base decoder.
"""

from typing import Any

import pandas as pd
import torch

from rank_e.metrics.bootstrap import bootstrap_interval
from rank_e.metrics.suite import Reference, evaluate_pictures
from rank_e.metrics.tokens import entropy_bits, token_histogram, token_kl
from rank_e.models.backbone import Backbone, load_backbone
from rank_e.models.tokenizer import to_unit
from rank_e.sampling.sampler import SamplingConfig, sample
from rank_e.seeds import seed_for
from stages.artifacts import Artifact, ArtifactWriter, read_artifact
from stages.runtime import Stage, main


def held_out_prompts(backbone: Backbone, params: Any) -> pd.DataFrame:
    """The evaluation prompts, each repeated samples_per_prompt times one after another pass (prompt, category)."""
    pairs = backbone.prompts("held_out", params.prompts, seed_for(params.seed, "evaluation", "prompts"))
    return pd.DataFrame(pairs * params.samples_per_prompt, columns=["prompt", "category"])


def held_out_tokens(stage: Stage, backbone: Backbone, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sample tokens [N, L] for the evaluation prompts with the policy `weights` and the evaluation's own seeds."""
    params = stage.params.evaluation
    table = held_out_prompts(backbone, params)
    text, mask = backbone.encode_text(table["prompt"].tolist())
    seeds = [seed_for(params.seed, "evaluation", "sample", index) for index in range(len(table))]
    config = SamplingConfig(params.guidance, params.temperature, params.top_k, params.top_p)
    return sample(
        backbone.policy(weights),
        text,
        mask,
        seeds,
        config,
        batch_size=params.batch_size,
        progress=lambda steps: stage.progress(steps, "sampling"),
    ).tokens


@torch.no_grad()
def decode(backbone: Backbone, decoder: dict[str, torch.Tensor], tokens: torch.Tensor, batch: int) -> torch.Tensor:
    """tokens [N, L] -> pictures [N, 3, H, W] in [0, 1]."""
    tokenizer = backbone.tokenizer(decoder)
    return torch.cat([to_unit(tokenizer.decode_tokens(part)).clamp(0, 1) for part in tokens.split(batch)])


@torch.no_grad()
def judge(
    stage: Stage, backbone: Backbone, reference: Reference, pictures: torch.Tensor, bootstrap: int
) -> tuple[dict, pd.DataFrame]:
    """Metrics of pictures of the evaluation prompts, and a row a picture (prompt, category, correct, clip)."""
    params = stage.params.evaluation
    table = held_out_prompts(backbone, params)
    prompts = table["prompt"].tolist()
    metrics, scores = evaluate_pictures(
        pictures, prompts, backbone.evaluator, reference, seed=params.seed, bootstrap=bootstrap
    )
    table["correct"] = backbone.check(pictures, prompts).numpy()
    table["clip"] = scores.numpy()
    metrics["accuracy"] = float(table["correct"].mean())
    if bootstrap:
        draw = seed_for(params.seed, "metrics", "bootstrap")
        correct = torch.from_numpy(table["correct"].to_numpy(copy=True)).float()
        metrics["accuracy_low"], metrics["accuracy_high"] = bootstrap_interval(correct, bootstrap, draw)
    for category, rows in table.groupby("category"):
        metrics[f"accuracy_{str(category).replace(' ', '_')}"] = float(rows["correct"].mean())
    reward = backbone.reward(stage.params.ranking.reward)
    batches = range(0, len(prompts), params.batch_size)
    rewards = [reward(pictures[i : i + params.batch_size], prompts[i : i + params.batch_size]) for i in batches]
    metrics["reward"] = torch.cat(rewards).mean().item()
    return metrics, table


def evaluate(stage: Stage, policy: dict, decoder: dict, inputs: dict[str, Artifact], target: Any) -> None:
    """Sample, decode through both decoders, judge, and write the evaluation artifact to `target`."""
    params = stage.params.evaluation
    backbone = load_backbone(stage.params.backbone.name, stage.params.backbone.base)
    reference = Reference.from_tensors(inputs["reference"].tensors("reference"))
    tokens = held_out_tokens(stage, backbone, policy)
    pictures = decode(backbone, decoder, tokens, params.batch_size)
    metrics, table = judge(stage, backbone, reference, pictures, params.bootstrap)
    base = backbone.decoder_weights()
    original, unchanged = pictures, metrics
    if any(not torch.equal(base[name], decoder[name]) for name in base):
        original = decode(backbone, base, tokens, params.batch_size)
        unchanged, _ = judge(stage, backbone, reference, original, bootstrap=0)
    # The intervals are the arm's own; the same tokens through the base decoder are a paired control of the values.
    values = {key: value for key, value in unchanged.items() if not key.endswith(("_low", "_high"))}
    metrics = metrics | {f"{key}@original": value for key, value in values.items()}
    histogram = token_histogram(tokens, len(reference.tokens))
    metrics |= {"token_kl": token_kl(histogram, reference.tokens), "token_entropy": entropy_bits(histogram)}
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with ArtifactWriter(target, "evaluation", seed=params.seed, inputs=paths) as out:
        out.json("metrics", metrics)
        out.table("samples", table)
        out.tensors("tokens", {"tokens": tokens})
        out.tensors(
            "pictures",
            {
                "pictures": as_bytes(pictures[: params.pictures]),
                "original": as_bytes(original[: params.pictures]),
            },
        )


def as_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> uint8, rounded."""
    return pictures.mul(255).round().to(torch.uint8)


def run(stage: Stage) -> None:
    """metrics.json, samples.parquet, tokens and pictures of the arm's EMA policy and EMA decoder."""
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
