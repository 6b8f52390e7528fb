"""GenEval's numbers from the results of single images, and their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from rank_e.evaluation.bootstrap import LEVEL, quantile_interval, resampling_weights
from rank_e.evaluation.geneval.evaluator import ImageResult
from rank_e.evaluation.geneval.tasks import GenEvalError, Task
from rank_e.seeds import seed_for

SAMPLES = 4  # images a prompt, published


@dataclass(frozen=True)
class GenEvalScores:
    """Shares in [0, 1]. `tasks`: correct images by tag, in the prompt file's order; `overall`: the mean over tags
    (the published score); `images`: correct images of all; `prompts`: prompts with any correct image.
    `intervals`: (low, high) of `overall` and of each tag.
    """

    overall: float
    tasks: dict[str, float]
    images: float
    prompts: float
    count: int
    intervals: dict[str, tuple[float, float]]


def summarise(
    tasks: Sequence[Task],
    results: Iterable[ImageResult],
    *,
    seed: int,
    samples: int = SAMPLES,
    resamples: int = 1000,
    level: float = LEVEL,
) -> GenEvalScores:
    """The scores of complete `results`.

    Intervals are percentile bootstraps over prompts within each tag (a prompt's images are alike, so prompts, not
    images, are resampled), independent between tags; the same seed and prompts give the same resamples, so that arms
    are compared in pairs. A tag of one prompt has an interval without width. Raises GenEvalError if a result is
    missing, occurs twice or belongs to other prompts, and unless resamples >= 2 and 0 < level < 1.
    """
    done = _table(tasks, results, samples)
    missing = len(tasks) * samples - len(done)
    if missing or not tasks:
        raise GenEvalError(f"geneval: {missing} of {len(tasks) * samples} images have no result; evaluate them first")
    if resamples < 2 or not 0 < level < 1:
        raise GenEvalError(f"geneval: {resamples} resamples at level {level}; give 2 or more, 0 < level < 1")
    shares: dict[str, list[float]] = {}
    for task in tasks:
        correct = [done[task.index, sample].correct for sample in range(samples)]
        shares.setdefault(task.tag, []).append(sum(correct) / samples)
    replicates = {}
    for tag, values in shares.items():
        weights = resampling_weights(len(values), resamples, seed_for(seed, "geneval", tag))
        replicates[tag] = weights @ torch.tensor(values, dtype=torch.float64) / len(values)
    replicates["overall"] = torch.stack(list(replicates.values())).mean(0)
    scores = {tag: sum(values) / len(values) for tag, values in shares.items()}
    every = [share for values in shares.values() for share in values]
    return GenEvalScores(
        overall=sum(scores.values()) / len(scores),
        tasks=scores,
        images=sum(every) / len(every),
        prompts=sum(share > 0 for share in every) / len(every),
        count=len(done),
        intervals={key: quantile_interval(values, level) for key, values in replicates.items()},
    )


def _table(tasks: Sequence[Task], results: Iterable[ImageResult], samples: int) -> dict[tuple[int, int], ImageResult]:
    """Results by (prompt, sample), each of which belongs to `tasks` and occurs once."""
    known = {task.index: task for task in tasks}
    table: dict[tuple[int, int], ImageResult] = {}
    for result in results:
        key = (result.index, result.sample)
        task = known.get(result.index)
        if task is None or (task.tag, task.prompt) != (result.tag, result.prompt) or not 0 <= result.sample < samples:
            raise GenEvalError(
                f"geneval: result {key} {result.prompt!r} is none of these prompts and samples; start its table anew"
            )
        if key in table:
            raise GenEvalError(f"geneval: result {key} {result.prompt!r} occurs twice; start its table anew")
        table[key] = result
    return table
