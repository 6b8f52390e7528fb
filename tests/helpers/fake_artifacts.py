"""A small finished run on disk, written by hand: what readers of artifacts (report, compare, tracking) may rely on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from ruamel.yaml import YAML

from rank_e.config import Params, load
from rank_e.config.evaluation import GenEvalBenchmark, HPSv2Benchmark, PromptsBenchmark
from rank_e.evaluation.features import FID
from rank_e.evaluation.metric import REWARD, TOKEN_ENTROPY, TOKEN_KL, Group, Metric
from rank_e.evaluation.prompt_sets import GENEVAL, HPSV2
from rank_e.evaluation.scores import ClipScore
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.stage import artifact_path, make_stage

SHOWN, TOKENS = 4, 36
REAL = 6
"""Images of the reference's rows."""
PROMPTS = ("a red circle", "two blue squares", "a triangle", "a green circle left of a yellow square")


@dataclass(frozen=True)
class World:
    """A run's metrics: for each key its value at the base and what a round of an arm does to it.

    `described` says what each is; `scores` are the columns of samples.parquet; `elsewhere` are a benchmark's, which
    factorial and reference lack; `categories` are of the held-out prompts, or of a benchmark. Coevolved repairs some of
    what frozen breaks.
    """

    levels: dict[str, tuple[float, float, float]]
    described: dict[str, tuple[Group, Metric]]
    scores: tuple[str, ...]
    elsewhere: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    evaluation: dict[str, Any]
    side: int


ALWAYS: dict[str, tuple[Group, Metric]] = {
    "reward": ("score", REWARD),
    "token_kl": ("tokens", TOKEN_KL),
    "token_entropy": ("tokens", TOKEN_ENTROPY),
}
CATEGORIES = ("colors", "counting", "one object", "position")
SHAPES = World(
    levels={
        "fd": (2.1, 0.22, 0.12),
        "fd_mid": (20.0, 1.4, 0.6),
        "fd_patch": (4.4, 0.8, -0.3),
        "clip": (71.0, 0.5, 0.6),
        "accuracy": (0.42, 0.03, 0.035),
        "reward": (68.0, 1.1, 1.3),
        "token_kl": (0.016, 0.012, 0.010),
        "token_entropy": (7.1, -0.08, -0.07),
    },
    described={
        "fd": ("distance", Metric("FD", "lower", "distance", decimals=2)),
        "fd_mid": ("distance", Metric("Mid-level FD", "lower", "distance half-way", decimals=2)),
        "fd_patch": ("distance", Metric("Patch FD", "lower", "distance of patches", decimals=2)),
        "clip": ("score", ClipScore.metric),
        "accuracy": ("score", Metric("Accuracy", "higher", "share that the checker finds", unit="%", decimals=1)),
        **ALWAYS,
    },
    scores=("clip", "accuracy", "reward"),
    elsewhere=(),
    categories=dict.fromkeys(("clip", "accuracy", "reward"), CATEGORIES),
    evaluation={},
    side=48,
)
PUBLISHED = World(
    levels={
        "coco": (15.24, 1.2, 0.1),
        "gram": (0.031, 0.002, -0.001),
        "clip30k": (31.5, 0.4, 0.6),
        "sharpness": (0.0123, 0.001, 0.002),
        "ge": (0.309, 0.04, 0.045),
        "hps": (0.2196, 0.011, 0.014),
        "parti_clip": (30.2, 0.3, 0.4),
        "parti_odd": (1.5, 0.1, 0.2),
        "reward": (0.2231, 0.01, 0.02),
        "token_kl": (0.09, 0.01, 0.001),
        "token_entropy": (13.85, -0.01, -0.005),
    },
    described={
        "coco": ("distance", FID),
        "gram": ("distance", Metric("gram", "lower", "distance of gram matrices")),
        "clip30k": ("score", ClipScore.metric),
        "sharpness": ("score", Metric("sharpness", "higher", "how sharp images are")),
        "ge": ("benchmark", GENEVAL),
        "hps": ("benchmark", HPSV2),
        "parti_clip": ("benchmark", Metric("CLIP score on parti", "higher", "agreement on parti", decimals=2)),
        "parti_odd": ("benchmark", Metric("odd on parti", "higher", "oddness on parti")),
        **ALWAYS,
    },
    scores=("clip30k", "sharpness", "reward"),
    elsewhere=("ge", "hps", "parti_clip", "parti_odd"),
    categories={
        "ge": ("color_attr", "single_object"),
        "hps": ("anime", "concept-art", "paintings", "photo"),
        "parti_clip": ("Fine-grained Detail", "Properties (& Positioning)"),
        "parti_odd": ("Fine-grained Detail", "Properties (& Positioning)"),
    },
    evaluation={
        "matched": None,
        "diversity": None,
        "distances": {"coco": {"kind": "inception", "file": "i"}, "gram": {"kind": "my.metrics:gram"}},
        "scores": {"clip30k": {"kind": "clip_score", "file": "c"}, "sharpness": {"kind": "my.metrics:sharpness"}},
        "benchmarks": {
            "ge": {"kind": "geneval"},
            "hps": {"kind": "hpsv2"},
            "parti": {
                "kind": "prompts",
                "scores": {"clip": {"kind": "clip_score", "file": "c"}, "odd": {"kind": "my.metrics:odd"}},
            },
        },
    },
    side=256,
)
BENCHMARKS: dict[str, type[BaseModel]] = {
    "geneval": GenEvalBenchmark,
    "hpsv2": HPSv2Benchmark,
    "prompts": PromptsBenchmark,
}


def write_params(project: Path, seeds: list[int], rounds: int, world: World = SHAPES, sft: bool = False) -> Params:
    """The demo's params.yaml with other seeds, rounds, metrics and counts, loaded."""
    yaml = YAML(typ="safe", pure=True)
    data = yaml.load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
    data["seeds"] = seeds
    data["rounds"] = [{"id": index + 1, "prev": index} for index in range(rounds)]
    data["evaluated"] = [item["id"] for item in data["rounds"]]
    data["factorial"]["round"] = rounds
    data["sft"]["train"] = sft
    data["evaluation"] |= {"prompts": SHOWN, "samples_per_prompt": 2, "images": SHOWN} | world.evaluation
    for benchmark in data["evaluation"]["benchmarks"].values():  # files and counts, which nobody reads here
        for key, field in BENCHMARKS[benchmark["kind"]].model_fields.items():
            benchmark.setdefault(key, 1 if field.annotation is int else "x")
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(data, file)
    return load(project / "params.yaml")


def evaluation_metrics(arm: str, seed: int, round_id: int, world: World = SHAPES) -> dict[str, Any]:
    """Nested metrics that drift with the round and differ by seed, and the same under the original decoder.

    The supervised start ("sft") is half a round of the frozen arm.
    """
    noise = np.random.default_rng([seed, round_id, len(arm)])
    place, rounds = {"coevolved": (2, round_id), "frozen": (1, round_id), "sft": (1, 0.5)}.get(arm, (0, 0))
    own: dict[str, Any] = {}
    original: dict[str, Any] = {}
    for key, level in world.levels.items():
        value = level[0] + rounds * level[place] * (1 + 0.4 * float(noise.standard_normal()))
        if key.startswith("token_"):
            own[key] = {"value": value}
            continue
        levels = {name: value * (1 + 0.05 * index) for index, name in enumerate(world.categories.get(key, ()))}
        size = size_of(key, world)
        own[key] = between(value) | size
        original[key] = {"value": value + (0.3 if arm == "coevolved" else 0.0)} | size
        if levels:
            own[key]["categories"] = {name: between(level) for name, level in levels.items()}
            original[key]["categories"] = {name: {"value": level} for name, level in levels.items()}
    return {"images": 2 * SHOWN, **own, "original": original}


def size_of(key: str, world: World, images: int = 2 * SHOWN) -> dict[str, int]:
    """Of how many images a distance is, and to how many real ones (a matched one: captions); nothing for others."""
    if world.described.get(key, ("",))[0] != "distance":
        return {}
    return {"images": images - 1, "captions": 2} if key.endswith("_matched") else {"images": images, "real": 64}


def between(value: float) -> dict[str, Any]:
    """A value in the middle of its interval."""
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def images(hue: int, side: int) -> torch.Tensor:
    """uint8 [SHOWN, 3, side, side]: a disc on a gradient; `hue` moves its colour."""
    rows, cols = np.mgrid[:side, :side] * 48 / side
    found = np.zeros((SHOWN, 3, side, side), np.uint8)
    for index in range(SHOWN):
        found[index] = (160 + rows + index).astype(np.uint8)
        inside = (rows - 20 - 2 * index) ** 2 + (cols - 24) ** 2 < 130
        found[index, (index + hue) % 3][inside] = 235
        found[index, (index + hue + 1) % 3][inside] = 40 + 8 * hue
    return torch.from_numpy(found)


def samples(world: World = SHAPES) -> pd.DataFrame:
    """Two passes over the prompts: prompt, category and a column for each score; every third image is wrong."""
    count = SHOWN * 2
    rows = {
        "prompt": [PROMPTS[index % SHOWN] for index in range(count)],
        "category": [CATEGORIES[index % SHOWN] if world.side == SHAPES.side else "" for index in range(count)],
    }
    scores = {key: [world.levels[key][0] + 0.01 * index for index in range(count)] for key in world.scores}
    if "accuracy" in scores:
        scores["accuracy"] = [float(index % 3 != 0) for index in range(count)]
    return pd.DataFrame(rows | scores)


def write_evaluation(
    path: Path, arm: str, seed: int, round_id: int, world: World = SHAPES, params: dict[str, Any] | None = None
) -> None:
    """One evaluation artifact; params: the sections that it was made with."""
    drawn = {"images": images(seed + round_id, world.side), "original": images(seed, world.side)}
    with ArtifactWriter(path, "evaluation", seed=1234, deterministic=True, params=params) as out:
        out.json("metrics", evaluation_metrics(arm, seed, round_id, world))
        out.json("descriptions", [metric.described(key, group) for key, (group, metric) in world.described.items()])
        out.table("samples", samples(world))
        out.tensors("tokens", {"tokens": torch.zeros(SHOWN * 2, TOKENS, dtype=torch.int32)})
        out.tensors("images", drawn)


def log_table(round_id: int, steps: int, columns: tuple[str, ...]) -> pd.DataFrame:
    """A training log: `step` counts on through the rounds."""
    first = (round_id - 1) * steps
    step = np.arange(first, first + steps)
    return pd.DataFrame({"step": step} | {name: np.sin(step / 3 + i) for i, name in enumerate(columns)})


def write_training(project: Path, arm: str, seed: int, round_id: int, world: World = SHAPES) -> None:
    """The artifacts ranking, policy and decoder of one cell, of the project's params."""
    level, *drift = world.levels["reward"]
    reward = level + drift[arm == "coevolved"] * (round_id - 1) + 0.1 * seed
    params, trained = load(project / "params.yaml"), arm != "frozen"

    def writer(kind: str) -> ArtifactWriter:
        stage = make_stage(kind, params, arm, seed, round_id)
        used = {"decoder": {"train": False}} if kind == "decoder" and not trained else stage.used
        return ArtifactWriter(project / stage.path(kind), kind, seed=seed, deterministic=True, params=used)

    with writer("ranking") as out:
        out.json("metrics", {"reward_mean": reward, "reward_std": 2.0, "temperature": 1.0})
    with writer("policy") as out:
        out.table("log", log_table(round_id, 8, ("loss", "kl", "reward")))
        out.json("metrics", {"loss": 0.1, "kl": 0.01})
    with writer("decoder") as out:
        empty = pd.DataFrame({"step": pd.Series(dtype="int64")})
        out.table("log", log_table(round_id, 6, ("gan", "reconstruction")) if trained else empty)
        out.json("metrics", {"gan": 0.2} if trained else {})


def measured(world: World) -> list[str]:
    """What the held-out prompts' images alone decide: no benchmark, no tokens."""
    return [key for key in world.levels if not key.startswith("token_") and key not in world.elsewhere]


def write_reference(project: Path, world: World = SHAPES) -> None:
    """The artifact reference; in the embedded world real images are of the very prompts, elsewhere of captions."""
    levels = {key: world.levels[key][0] * (1.05 if key in world.scores else 0.2) for key in measured(world)}
    rows = {
        name: {key: between(level * share) | size_of(key, world, REAL) for key, level in levels.items()}
        for name, share in (("real", 1.0), ("reconstruction", 0.95))
    }
    rows["reconstruction"]["l1"] = {"value": 0.01}
    captions = PROMPTS if world.side == SHAPES.side else tuple(f"a photo, number {index}" for index in range(SHOWN))
    with ArtifactWriter(project / artifact_path("reference"), "reference", seed=1234, deterministic=True) as out:
        out.json("metrics", rows)
        out.tensors("images", {"real": images(0, world.side), "reconstruction": images(0, world.side)})
        out.table("prompts", pd.DataFrame({"prompt": captions}))
        out.json("skipped", [])


def write_factorial(project: Path, arm: str, seed: int, round_id: int, world: World = SHAPES) -> None:
    """The artifact factorial of one cell; a frozen decoder is the original one and has no column."""

    def row(policy: str, **columns: float) -> dict[str, Any]:
        values = {key: evaluation_metrics(policy, seed, round_id, world)[key]["value"] for key in measured(world)}
        return {
            name: {key: {"value": value + shift} | size_of(key, world) for key, value in values.items()}
            for name, shift in columns.items()
        }

    gain = -0.05 * (seed + 1)
    table = {arm: row(arm, original=0.0, affine=-0.01)}
    if arm == "coevolved":
        table[arm] |= row(arm, coevolved=gain)
        table["frozen"] = row("frozen", coevolved=gain)
        distances = [key for key, (group, _) in world.described.items() if group == "distance"]
        table["real"] = {arm: {key: {"value": 0.3} | size_of(key, world, REAL) for key in (*distances, "l1")}}
    path = project / artifact_path("factorial", arm, seed, round_id)
    with ArtifactWriter(path, "factorial", seed=seed, deterministic=True) as out:
        out.json("metrics", table)
        out.json("skipped", [])


def write_project(
    project: Path, seeds: list[int] | None = None, rounds: int = 2, world: World = SHAPES, sft: bool = False
) -> Params:
    """A whole finished run under `project`: params.yaml and every artifact that readers open."""
    params = write_params(project, [0, 1, 2] if seeds is None else seeds, rounds, world, sft)
    write_reference(project, world)
    write_evaluation(project / artifact_path("baseline"), "base", 0, 0, world, make_stage("baseline", params).used)
    for seed in params.seeds if sft else ():
        used = make_stage("sft_evaluation", params, seed=seed).used
        write_evaluation(project / artifact_path("sft_evaluation", seed=seed), "sft", seed, 0, world, used)
    for arm in params.arms:
        for seed in params.seeds:
            for round_id in range(1, rounds + 1):
                write_training(project, arm, seed, round_id, world)
                path = project / artifact_path("evaluation", arm, seed, round_id)
                used = make_stage("evaluation", params, arm, seed, round_id).used
                write_evaluation(path, arm, seed, round_id, world, used)
                write_factorial(project, arm, seed, round_id, world)
    return params
