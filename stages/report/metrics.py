"""The columns of the report: every metric that a run's params name, with its name, direction, unit and meaning."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from rank_e.config import Params
from rank_e.config.evaluation import Benchmark

Better = Literal["higher", "lower", "nearer"]
Group = Literal["distance", "score", "benchmark", "tokens"]


@dataclass(frozen=True)
class Metric:
    """One column of the report: its key in metrics.json, its name, which way is better and what it says.

    `decimals: None` is a scale that the params do not tell: four significant digits then.
    """

    key: str
    group: Group
    name: str
    better: Better
    decimals: int | None
    meaning: str
    percent: bool = False

    @property
    def direction(self) -> str:
        """The direction in words, as tables and the page print it."""
        return "nearer to real is better" if self.better == "nearer" else f"{self.better} is better"

    @property
    def arrow(self) -> str:
        """The direction as one sign."""
        return {"higher": "↑", "lower": "↓", "nearer": "≈"}[self.better]

    def text(self, value: float | None, signed: bool = False) -> str:
        """`value` in this metric's unit and precision; a dash where it is not there."""
        if value is None or not math.isfinite(value):
            return "–"
        scaled = value * 100 if self.percent else value
        decimals = decimals_for(scaled) if self.decimals is None else self.decimals
        written = f"{scaled:+.{decimals}f}" if signed else f"{scaled:.{decimals}f}"
        unit = (" pp" if signed else " %") if self.percent else ""  # a difference of shares is in percentage points
        return (written + unit).replace("-", "−")

    def improves(self, difference: float) -> bool | None:
        """Whether a difference is for the better; None when it is zero or the metric cannot tell."""
        if difference == 0 or self.better == "nearer":
            return None
        return (difference > 0) == (self.better == "higher")

    def scaled_like(self, value: float | None) -> "Metric":
        """This metric with the decimals that suit `value`, so that all its values and differences have the same."""
        known = self.decimals is not None or value is None
        return self if known else replace(self, decimals=decimals_for(value or 0.0))


def decimals_for(value: float) -> int:
    """Decimals that show four significant digits of `value`: between 1 and 6, and 4 for zero."""
    return min(6, max(1, 3 - math.floor(math.log10(abs(value))))) if value else 4


def _known(group: Group, name: str, decimals: int | None, meaning: str, percent: bool = False) -> Metric:
    return Metric("", group, name, "lower" if group == "distance" else "higher", decimals, meaning, percent)


WORLD = "rank_e.shapes.metrics:"
KNOWN = {
    "inception": _known("distance", "FID", 2, "Fréchet distance to real images in Inception's features"),
    "dinov2": _known("distance", "FD-DINOv2", 1, "Fréchet distance to real images in DINOv2's features"),
    "clip_features": _known("distance", "FD-CLIP", None, "Fréchet distance to real images in CLIP's features"),
    "clip_score": _known("score", "CLIP score", 2, "agreement of image and prompt, 100 cos"),
    f"{WORLD}last_features": _known(
        "distance", "FD", 2, "Fréchet distance to real images, the evaluator's last features"
    ),
    f"{WORLD}middle_features": _known(
        "distance", "Mid-level FD", 2, "Fréchet distance of the evaluator's middle features"
    ),
    f"{WORLD}patch_places": _known("distance", "Patch FD", 2, "Fréchet distance of patches: texture and edges"),
    f"{WORLD}clip_score": _known(
        "score", "CLIP score", 2, "agreement of image and prompt, 100 cos, by a network that no update ever saw"
    ),
    f"{WORLD}checker": _known(
        "score", "Accuracy", 1, "share of images in which the exact checker finds what the prompt says", True
    ),
}
"""Judges whose name, scale and meaning are known, by their `kind`; others get columns by their own names."""

ALWAYS = (
    Metric("reward", "score", "Reward", "higher", None, "the score that the policy and the decoder were trained on"),
    Metric(
        "token_kl",
        "tokens",
        "Token KL",
        "lower",
        4,
        "divergence of the sampled tokens from those of real images: the covariate shift",
    ),
    Metric(
        "token_entropy",
        "tokens",
        "Token entropy",
        "nearer",
        3,
        "entropy of the tokens in bits; it falls when the policy loses variety",
    ),
)
"""What every evaluation has, whatever its judges."""


def catalogue(params: Params) -> tuple[Metric, ...]:
    """The run's metrics: distances, scores and benchmarks in the order of the params, reward, token KL, token entropy.

    A judge of an unknown `kind` gets a column by its name in the params: of distances lower is better, of scores
    higher. Where two would have one name, each has its key added.
    """
    evaluation = params.evaluation
    found = [_distance(name, section.kind) for name, section in evaluation.distances.items()]
    found += [_score(name, section.kind) for name, section in evaluation.scores.items()]
    for name, benchmark in evaluation.benchmarks.items():
        found += _benchmark(name, benchmark)
    found += ALWAYS
    names = Counter(metric.name for metric in found)
    return tuple(replace(m, name=f"{m.name} ({m.key})") if names[m.name] > 1 else m for m in found)


def _distance(key: str, kind: str) -> Metric:
    if kind in KNOWN:
        return replace(KNOWN[kind], key=key)
    return Metric(key, "distance", key, "lower", None, f"Fréchet distance to real images in the features of {kind}")


def _score(key: str, kind: str) -> Metric:
    if kind in KNOWN:
        return replace(KNOWN[kind], key=key)
    return Metric(key, "score", key, "higher", None, f"mean score by {kind}")


def _benchmark(name: str, section: Benchmark) -> list[Metric]:
    """One metric of a published benchmark; of a prompt list one for each of its scores."""
    if section.kind == "geneval":
        meaning = "share of GenEval's images in which a detector finds what the prompt says, mean over its tasks"
        return [Metric(name, "benchmark", "GenEval", "higher", 1, meaning, True)]
    if section.kind == "hpsv2":
        meaning = "mean HPSv2.1 reward over the benchmark's four styles"
        return [Metric(name, "benchmark", "HPSv2", "higher", 4, meaning)]
    found = []
    for score, plugin in section.scores.items():
        metric = _score(score, plugin.kind)
        found.append(
            replace(
                metric,
                key=f"{name}_{score}",
                group="benchmark",
                name=f"{metric.name} on {name}",
                meaning=f"{metric.meaning}; on the prompts of {name}",
            )
        )
    return found
