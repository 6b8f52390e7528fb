"""The picture metrics of an evaluation as one call, and the statistics of real pictures that they compare
with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.metrics.bootstrap import bootstrap_interval
from rank_e.metrics.clip_score import Evaluator
from rank_e.metrics.features import evaluator_features, patch_features
from rank_e.metrics.frechet import Moments, ResampledFrechet, frechet_distance
from rank_e.metrics.tokens import token_histogram
from rank_e.seeds import seed_for

DISTANCES = ("fd", "fd_mid", "fd_patch")


@dataclass(frozen=True)
class Reference:
    """Moments of real pictures' features by metric (a key of DISTANCES), and the counts of their tokens
    [V].
    """

    moments: dict[str, Moments]
    tokens: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        """As named tensors for one safetensors file; the inverse of `from_tensors`."""
        tensors = {"tokens": self.tokens}
        for name, moments in self.moments.items():
            tensors |= {
                f"{name}.mean": moments.mean,
                f"{name}.cov": moments.cov.contiguous(),
                f"{name}.n": torch.tensor(moments.n),
            }
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Reference:
        """Raises RankEError naming tensors that are missing."""
        needed = {f"{name}.{part}" for name in DISTANCES for part in ("mean", "cov", "n")} | {"tokens"}
        if missing := sorted(needed - tensors.keys()):
            raise RankEError(f"reference: no tensor {', '.join(missing)}; make it again with `dvc repro reference`")
        moments = {
            name: Moments(tensors[f"{name}.mean"], tensors[f"{name}.cov"], int(tensors[f"{name}.n"]))
            for name in DISTANCES
        }
        return cls(moments, tensors["tokens"])


def picture_features(evaluator: Evaluator, pictures: Tensor, seed: int) -> dict[str, Tensor]:
    """Features by metric: fd [N, D], fd_mid [N, D'], fd_patch [N, P, D'']; patch places depend on the
    seed.
    """
    last, middle = evaluator_features(evaluator.model, pictures)
    return {
        "fd": last,
        "fd_mid": middle,
        "fd_patch": patch_features(pictures, seed_for(seed, "metrics", "patches")),
    }


def build_reference(evaluator: Evaluator, pictures: Tensor, tokens: Tensor, vocab_size: int, seed: int) -> Reference:
    """Statistics of real pictures [N, 3, H, W] in [0, 1] and of their tokens (integers of any shape).

    The real set must have the prompt mix of the pictures to be judged: another mix alone moves a Frechet
    distance.
    """
    features = picture_features(evaluator, pictures, seed)
    moments = {name: Moments.of(rows.flatten(0, -2)) for name, rows in features.items()}
    return Reference(moments, token_histogram(tokens, vocab_size))


def evaluate_pictures(
    pictures: Tensor,
    prompts: list[str],
    evaluator: Evaluator,
    reference: Reference,
    seed: int,
    bootstrap: int,
) -> tuple[dict[str, float], Tensor]:
    """Judge pictures [N, 3, H, W] in [0, 1] of N prompts.

    Returns a flat dict with clip (100 cos, higher is better), fd, fd_mid and fd_patch (squared feature units,
    lower is better, biased up for small N: compare at equal N), each with `<key>_low` and `<key>_high`: the
    95 % interval from `bootstrap` resamples of whole pictures (0: no intervals). And the CLIP score of each
    picture, float32 [N]. Statistics are computed on the CPU, whatever device the evaluator works on.
    """
    scores = evaluator.clip_score(pictures, prompts)
    metrics = {"clip": float(scores.double().mean())}
    draw = seed_for(seed, "metrics", "bootstrap")
    if bootstrap:
        metrics["clip_low"], metrics["clip_high"] = bootstrap_interval(scores, bootstrap, draw)
    for name, rows in picture_features(evaluator, pictures, seed).items():
        real = reference.moments[name]
        metrics[name] = frechet_distance(real, Moments.of(rows.flatten(0, -2)))
        if bootstrap:
            resampled = ResampledFrechet(real, rows)
            low, metrics[f"{name}_high"] = bootstrap_interval(
                resampled, bootstrap, draw, rows=len(rows), estimate=metrics[name]
            )
            metrics[f"{name}_low"] = max(0.0, low)  # no distance is negative
    return metrics, scores
