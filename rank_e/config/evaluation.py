"""The sections `evaluation` and `factorial` of `params.yaml`, and the benchmarks."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field

from rank_e.config.kinds import DistanceParams, ScoreParams
from rank_e.config.messages import show
from rank_e.config.types import ArmName, Count, CountOrZero, MetricName, Positive, Rate, Section, Seed, Text


class PromptsBenchmark(Section):
    """Any prompt list with scores of its own, a mean for each of its categories.

    file: the prompts, in `weights.evaluation`.
    column: of the prompts; null where the file leaves no choice.
    category: column of the categories; null: none.
    prompts: how many are taken; 0: all.
    samples_per_prompt: images a prompt.
    scores: as `evaluation.scores`.
    """

    kind: Literal["prompts"]
    file: Text
    column: Text | None
    category: Text | None
    prompts: CountOrZero
    samples_per_prompt: Count
    scores: Annotated[dict[MetricName, ScoreParams], Field(min_length=1)]


class HPSv2Benchmark(Section):
    """HPSv2's benchmark of four styles.

    prompts: the folder of its prompt files, in `weights.evaluation`.
    per_style: prompts of each style; 0: all 800.
    file: HPSv2's weights, in `weights.evaluation`.
    model: open_clip's name of the network: `ViT-H-14`.
    """

    kind: Literal["hpsv2"]
    prompts: Text
    per_style: CountOrZero
    file: Text
    model: Text


class GenEvalBenchmark(Section):
    """GenEval: objects, counts, colours and places, found by a detector.

    prompts: its `evaluation_metadata.jsonl`, in `weights.evaluation`.
    samples_per_prompt: images a prompt.
    detector: folder of a Mask2Former of COCO instances, in `weights.evaluation`.
    clip: CLIP's weights for the colours, in `weights.evaluation`.
    model: open_clip's name of that CLIP: `ViT-L-14-quickgelu`.
    """

    kind: Literal["geneval"]
    prompts: Text
    samples_per_prompt: Count
    detector: Text
    clip: Text
    model: Text


class MatchedParams(Section):
    """Distances once more, of the images alone whose score is 1, every caption weighing as much as in the prompts.

    score: one of `evaluation.scores` whose values are 0 or 1.
    distances: those of `evaluation.distances` that are also measured so, as `NAME_matched`.
    least: a caption with fewer such images is left out, on the real side too.
    """

    score: MetricName
    distances: Annotated[list[MetricName], Field(min_length=1)]
    least: Annotated[int, Field(ge=2, le=1_000_000)]


RESERVED_METRICS = ("images", "original", "affine", "reward", "token_kl", "token_entropy", "value", "low", "high")
"""Names that mean something else in an evaluation's or the factorial's metrics."""
Benchmark = Annotated[PromptsBenchmark | HPSv2Benchmark | GenEvalBenchmark, Field(discriminator="kind")]


class EvaluationParams(Section):
    """What is measured, on held-out prompts: Frechet distances to real images, scores, benchmarks, tokens.

    prompts: how many held-out prompts.
    samples_per_prompt: images a prompt.
    guidance: classifier-free guidance; 1: off.
    temperature: of the softmax.
    top_k: the most likely tokens that can be drawn; 0: off.
    top_p: the probability that they hold at least; 1: off.
    batch_size: images at once.
    seed: of the evaluation's random numbers, which all arms share.
    reference_images: real images that make the statistics of the distances.
    real_images: others, which are evaluated as the rows "real" and "reconstruction".
    bootstrap: resamples that make the intervals; 0: none.
    images: how many are kept to be looked at.
    distances: by name of your choice, each of a kind below.
    matched: distances of the images alone that are right; null: none.
    scores: by name of your choice, each of a kind below; the rewards are added to them.
    diversity: the distance in whose features images of one prompt are compared; null: none.
    benchmarks: by name of your choice, each of a kind below.
    """

    prompts: Count
    samples_per_prompt: Count
    guidance: Annotated[float, Field(ge=1, le=100)]
    temperature: Positive
    top_k: CountOrZero
    top_p: Rate
    batch_size: Count
    seed: Seed
    reference_images: Annotated[int, Field(ge=2, le=10_000_000)]
    real_images: Annotated[int, Field(ge=2, le=10_000_000)]
    bootstrap: CountOrZero
    images: Count
    distances: dict[MetricName, DistanceParams]
    matched: MatchedParams | None
    scores: dict[MetricName, ScoreParams]
    diversity: MetricName | None
    benchmarks: dict[MetricName, Benchmark]


class FactorialParams(Section):
    """Which arms are compared on the same tokens, and with which.

    arms: the first is the control of the others, if any.
    round: the one that `dvc metrics show` shows, the last.
    """

    arms: Annotated[list[ArmName], Field(min_length=1)]
    round: Count


def unknown_names(params: EvaluationParams) -> list[str]:
    """A line for each name in `matched` and `diversity` that is none of the distances or scores, or stands twice."""
    distances, scores, matched = list(params.distances), list(params.scores), params.matched
    named = [("diversity", params.diversity, "distances", distances)] if params.diversity else []
    if matched is not None:
        named.append(("matched.score", matched.score, "scores", scores))
        for index, name in enumerate(matched.distances):
            others = [other for other in distances if other not in matched.distances[:index]]
            named.append((f"matched.distances.{index}", name, "distances", others))
    return [
        f"evaluation.{key} = {show(name)}: must be one of evaluation.{group}, once: {', '.join(known) or 'none left'}"
        for key, name, group, known in named
        if name not in known
    ]


def taken_names(params: EvaluationParams) -> list[str]:
    """A line for each metric whose name is another one's, an interval's end of one, or has another meaning."""
    named = [(f"distances.{name}", name) for name in params.distances]
    named += [(f"scores.{name}", name) for name in params.scores]
    named += [("matched", f"{name}_matched") for name in (params.matched.distances if params.matched else ())]
    named += [("diversity", "diversity")] if params.diversity else []
    for name, benchmark in params.benchmarks.items():
        keys = [f"{name}_{score}" for score in benchmark.scores] if benchmark.kind == "prompts" else [name]
        named += [(f"benchmarks.{name}", key) for key in keys]
    counts = Counter(key for _, key in named)
    taken = {*RESERVED_METRICS, *(f"{key}_{end}" for key in counts for end in ("low", "high"))}
    taken |= {key for key, count in counts.items() if count > 1}
    allowed = f"allowed: any name but the other metrics' and {', '.join(RESERVED_METRICS)}"
    return [f"evaluation.{place}: the name {key} is taken, {allowed}" for place, key in named if key in taken]
