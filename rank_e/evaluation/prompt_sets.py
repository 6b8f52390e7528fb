"""Prompt sets: which prompts get how many images, which metrics see the images, and what numbers come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rank_e.config import Params
from rank_e.data.dataset import Dataset
from rank_e.data.prompts import open_prompts
from rank_e.evaluation.base import Images, digest
from rank_e.evaluation.estimates import Estimate
from rank_e.evaluation.hpsv2 import read_benchmark
from rank_e.evaluation.metric import REWARD, Metric
from rank_e.evaluation.networks import existing_file
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.scores import RewardScore
from rank_e.evaluation.stream import ImageStream, Values
from rank_e.evaluation.suite import Suite, build_suite
from rank_e.evaluation.summary import Nested, nested, summarise
from rank_e.io.files import sha256_of
from rank_e.rewards.hpsv2 import hpsv2_reward
from rank_e.rewards.mixture import build_rewards
from rank_e.rewards.open_clip_models import model_within
from rank_e.seeds import seed_for

if TYPE_CHECKING:
    from rank_e.config.evaluation import GenEvalBenchmark, HPSv2Benchmark, PromptsBenchmark
    from rank_e.config.kinds import RewardKind
    from rank_e.evaluation.geneval.evaluator import GenEval
    from rank_e.evaluation.geneval.tasks import Task

HELD_OUT = "held_out"
HPSV2 = Metric("HPSv2", "higher", "mean HPSv2.1 reward over the benchmark's four styles", decimals=4)
GENEVAL = Metric(
    "GenEval",
    "higher",
    "share of GenEval's images in which a detector finds what the prompt says, mean over its tasks",
    unit="%",
    decimals=1,
)
References = Mapping[str, Statistics]


@dataclass(frozen=True)
class PromptSet:
    """A prompt and a category ("": none) for each image, in their order, and the metrics that see the images.

    `described`: what each metric says of itself, as JSON holds it (`Metric.described`).
    """

    name: str
    prompts: list[str]
    categories: list[str]
    suite: Suite
    described: list[dict[str, Any]]

    @property
    def key(self) -> str:
        """What decides the values besides the suite's networks: here nothing else does."""
        return ""

    def values(self, start: int, images: Images) -> Values:
        """Further columns for the images from number `start` on."""
        return {}

    def summarise(
        self, stream: ImageStream, references: References, *, seed: int, resamples: int, device: torch.device
    ) -> Nested:
        """Every metric of the finished stream; with intervals where `resamples` > 0."""
        return summarise(
            stream,
            references,
            seed=seed,
            resamples=resamples,
            device=device,
            matched=self.suite.matched,
            diversity=self.suite.diversity,
        )


@dataclass(frozen=True)
class GenEvalSet(PromptSet):
    """GenEval's prompts, `samples` images each; one column more than others: what the rules found."""

    geneval: GenEval = field(kw_only=True)
    tasks: list[Task] = field(kw_only=True)
    samples: int = field(kw_only=True)

    @property
    def key(self) -> str:
        return f"{self.geneval.protocol} {self.geneval.sha256}"

    def values(self, start: int, images: Images) -> Values:
        items = [(self.tasks[i // self.samples], i % self.samples) for i in range(start, start + len(images))]
        results = self.geneval(images, items)
        return {
            "correct": [float(result.correct) for result in results],
            "reason": [result.reason for result in results],
            "objects": [result.objects for result in results],
        }

    def summarise(
        self, stream: ImageStream, references: References, *, seed: int, resamples: int, device: torch.device
    ) -> Nested:
        """The mean over the six tasks; by category, each task's share of correct images."""
        from rank_e.evaluation.geneval.evaluator import ImageResult
        from rank_e.evaluation.geneval.scores import summarise as shares

        results = []
        for start, columns in stream.rows("correct", "reason", "objects"):
            rows = zip(columns["correct"], columns["reason"], columns["objects"], strict=True)
            for index, (correct, reason, objects) in enumerate(rows, start):
                task, sample = self.tasks[index // self.samples], index % self.samples
                results.append(
                    ImageResult(task.index, sample, task.tag, task.prompt, bool(correct), str(reason), str(objects))
                )
        scores = shares(self.tasks, results, seed=seed, samples=self.samples, resamples=max(2, resamples))

        def estimate(share: float, tag: str) -> Estimate:
            return Estimate(share, *scores.intervals[tag]) if resamples else Estimate(share)

        tasks = {tag: estimate(share, tag) for tag, share in scores.tasks.items()}
        return {self.name: nested({"": estimate(scores.overall, "overall"), **tasks})}


def held_out_set(params: Params, dataset: Dataset, device: torch.device) -> PromptSet:
    """The held-out dataset's prompts, the whole list samples_per_prompt times, with the evaluation's metrics.

    The rewards' weighted sum is one more score, "reward".
    """
    section = params.evaluation
    seed = seed_for(section.seed, "evaluation", "prompts")
    pairs = dataset.prompts(section.prompts, seed) * section.samples_per_prompt
    suite = build_suite(section.distances, section.scores, Path(params.weights.evaluation), device)
    reward = reward_score(params.ranking.rewards, Path(params.weights.training), device)
    scores = {**suite.scores, "reward": reward}
    suite = replace(suite, scores=scores, matched=section.matched, diversity=section.diversity)
    prompts, categories = [prompt for prompt, _ in pairs], [category for _, category in pairs]
    return PromptSet(HELD_OUT, prompts, categories, suite, suite.described())


def reward_score(rewards: Mapping[str, RewardKind], folder: Path, device: torch.device) -> RewardScore:
    """The rewards' weighted sum as a metric: raw scores, since running statistics differ from arm to arm."""
    raw = {name: section.model_copy(update={"normalise": "none"}) for name, section in rewards.items()}
    names = " + ".join(f"{section.weight:g} {name}" for name, section in raw.items())
    key = digest({name: section.model_dump() for name, section in rewards.items()})
    return RewardScore(build_rewards(raw, folder, device), metric=REWARD, name=names, sha256=key, device=device)


def open_benchmark(
    name: str,
    section: PromptsBenchmark | HPSv2Benchmark | GenEvalBenchmark,
    folder: Path,
    device: torch.device,
) -> PromptSet:
    """The benchmark called `name`, its files within `folder`. EvaluationError or DataError for what is not there."""
    if section.kind == "prompts":
        return _prompt_list(name, section, folder, device)
    if section.kind == "hpsv2":
        return _hpsv2(name, section, folder, device)
    return _geneval(name, section, folder, device)


def _prompt_list(name: str, section: PromptsBenchmark, folder: Path, device: torch.device) -> PromptSet:
    rows = open_prompts(folder / section.file, section.column, section.category)
    rows = rows[: section.prompts or None] * section.samples_per_prompt
    scores = {f"{name}_{score}": options for score, options in section.scores.items()}
    suite = build_suite({}, scores, folder, device, where=f"evaluation.benchmarks.{name}")
    described = []
    for key, score in suite.scores.items():
        metric, meaning = score.metric, f"{score.metric.meaning}; on the prompts of {name}"
        metric = replace(metric, name=f"{metric.name} on {name}", meaning=meaning)
        described.append(metric.described(key, "benchmark"))
    return PromptSet(name, [row.text for row in rows], [row.category for row in rows], suite, described)


def _hpsv2(name: str, section: HPSv2Benchmark, folder: Path, device: torch.device) -> PromptSet:
    rows = read_benchmark(folder / section.prompts, section.per_style or None)
    sha256 = sha256_of(existing_file(folder / section.file))
    reward = hpsv2_reward(folder, device, file=section.file, model=section.model)
    suite = Suite({}, {name: RewardScore(reward, metric=HPSV2, name="1 hps", sha256=sha256, device=device)})
    described = [HPSV2.described(name, "benchmark")]
    return PromptSet(name, [prompt for _, prompt in rows], [style for style, _ in rows], suite, described)


def _geneval(name: str, section: GenEvalBenchmark, folder: Path, device: torch.device) -> PromptSet:
    from rank_e.evaluation.geneval.colors import ClipColors
    from rank_e.evaluation.geneval.detector import Mask2FormerDetector
    from rank_e.evaluation.geneval.evaluator import GenEval
    from rank_e.evaluation.geneval.tasks import read_tasks

    tasks, samples = read_tasks(folder / section.prompts), section.samples_per_prompt
    detector = Mask2FormerDetector.from_folder(folder / section.detector, device)
    colors = ClipColors.from_file(folder / section.clip, device, model_within(folder, section.model))
    return GenEvalSet(
        name,
        [task.prompt for task in tasks for _ in range(samples)],
        [task.tag for task in tasks for _ in range(samples)],
        Suite({}, {}),
        [GENEVAL.described(name, "benchmark")],
        geneval=GenEval(detector, colors),
        tasks=tasks,
        samples=samples,
    )
