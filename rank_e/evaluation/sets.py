"""Prompt sets: which prompts are drawn how often, which judges see the images, and what numbers come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rank_e.data.prompts import open_prompts
from rank_e.evaluation.base import Images
from rank_e.evaluation.hpsv2 import read_benchmark
from rank_e.evaluation.networks import need_file
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.scores import RewardScore
from rank_e.evaluation.stream import Stream, Values
from rank_e.evaluation.suite import Judges, build_judges, summarise
from rank_e.io.files import sha256_of
from rank_e.rewards.hpsv2 import hpsv2_reward
from rank_e.rewards.mixture import build_rewards
from rank_e.rewards.open_clip_models import model_within

if TYPE_CHECKING:
    from rank_e.config.evaluation import GenEvalBenchmark, HPSv2Benchmark, PromptsBenchmark
    from rank_e.config.kinds import RewardKind
    from rank_e.evaluation.geneval.judge import GenEval
    from rank_e.evaluation.geneval.tasks import Task

References = Mapping[str, Statistics]


@dataclass(frozen=True)
class PromptSet:
    """A prompt and a category ("": none) for each image, in the order in which they are drawn, and their judges."""

    name: str
    prompts: list[str]
    categories: list[str]
    judges: Judges

    @property
    def source(self) -> str:
        """What else than its judges decides the values: nothing."""
        return ""

    def values(self, start: int, images: Images) -> Values:
        """Further columns for the images from number `start` on."""
        return {}

    def metrics(
        self, stream: Stream, references: References, *, seed: int, resamples: int, device: torch.device
    ) -> dict[str, float]:
        """Every metric of the finished stream; with `_low` and `_high` where `resamples` > 0."""
        return summarise(stream, references, seed=seed, resamples=resamples, device=device)


@dataclass(frozen=True)
class GenEvalSet(PromptSet):
    """GenEval's prompts, `samples` images each; one column more than others: what the rules found."""

    geneval: GenEval = field(kw_only=True)
    tasks: list[Task] = field(kw_only=True)
    samples: int = field(kw_only=True)

    @property
    def source(self) -> str:
        return f"{self.geneval.protocol} {self.geneval.source}"

    def values(self, start: int, images: Images) -> Values:
        items = [(self.tasks[i // self.samples], i % self.samples) for i in range(start, start + len(images))]
        results = self.geneval(images, items)
        return {
            "correct": [float(result.correct) for result in results],
            "reason": [result.reason for result in results],
            "objects": [result.objects for result in results],
        }

    def metrics(
        self, stream: Stream, references: References, *, seed: int, resamples: int, device: torch.device
    ) -> dict[str, float]:
        """`<name>`: the mean over the six tasks; `<name>/<task>`: each task's share of correct images."""
        from rank_e.evaluation.geneval.judge import ImageResult
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
        named = {self.name: ("overall", scores.overall)}
        named |= {f"{self.name}/{tag}": (tag, share) for tag, share in scores.tasks.items()}
        metrics = {key: share for key, (_, share) in named.items()}
        if resamples:
            for key, (tag, _) in named.items():
                metrics[f"{key}_low"], metrics[f"{key}_high"] = scores.intervals[tag]
        return metrics


def reward_score(rewards: Mapping[str, RewardKind], folder: Path, device: torch.device, source: str) -> RewardScore:
    """The rewards' weighted sum as a judge: raw scores, since running statistics differ from arm to arm."""
    raw = {name: section.model_copy(update={"normalise": "none"}) for name, section in rewards.items()}
    names = " + ".join(f"{section.weight:g} {name}" for name, section in raw.items())
    return RewardScore(build_rewards(raw, folder, device), name=names, source=source, device=device)


def open_benchmark(
    name: str,
    section: PromptsBenchmark | HPSv2Benchmark | GenEvalBenchmark,
    folder: Path,
    device: torch.device,
) -> PromptSet:
    """The benchmark called `name`, its files within `folder`. EvaluationError or DataError for what is not there."""
    if section.kind == "prompts":
        rows = open_prompts(folder / section.file, section.column, section.category)
        rows = rows[: section.prompts or None] * section.samples_per_prompt
        scores = {f"{name}_{score}": options for score, options in section.scores.items()}
        judges = build_judges({}, scores, folder, device, where=f"evaluation.benchmarks.{name}")
        return PromptSet(name, [row.text for row in rows], [row.category for row in rows], judges)
    if section.kind == "hpsv2":
        styles = read_benchmark(folder / section.prompts, section.per_style or None)
        file = need_file(folder / section.file)
        reward = hpsv2_reward(folder, device, file=section.file, model=section.model)
        judge = RewardScore(reward, name="1 hps", source=sha256_of(file), device=device)
        return PromptSet(name, [p for _, p in styles], [style for style, _ in styles], Judges({}, {name: judge}))
    from rank_e.evaluation.geneval.colors import ClipColors
    from rank_e.evaluation.geneval.detector import Mask2FormerDetector
    from rank_e.evaluation.geneval.judge import GenEval
    from rank_e.evaluation.geneval.tasks import read_tasks

    tasks, samples = read_tasks(folder / section.prompts), section.samples_per_prompt
    detector = Mask2FormerDetector.from_folder(folder / section.detector, device)
    colors = ClipColors.from_file(folder / section.clip, device, model_within(folder, section.model))
    return GenEvalSet(
        name,
        [task.prompt for task in tasks for _ in range(samples)],
        [task.tag for task in tasks for _ in range(samples)],
        Judges({}, {}),
        geneval=GenEval(detector, colors),
        tasks=tasks,
        samples=samples,
    )
