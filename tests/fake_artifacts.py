"""A small finished run on disk, written by hand: what readers of artifacts (report, compare, tracking) may
rely on."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ruamel.yaml import YAML

from rank_e.config import Params, load
from stages.artifacts import ArtifactWriter
from stages.runtime import artifact_path

CATEGORIES = ("colors", "counting", "one object", "position")
PROMPTS = ("a red circle", "two blue squares", "a triangle", "a green circle left of a yellow square")
KEYS = ("accuracy", "clip", "reward", "fd", "fd_mid", "fd_patch", "token_kl", "token_entropy")
BASE = dict(zip(KEYS, (0.42, 71.0, 68.0, 2.1, 20.0, 4.4, 0.016, 7.1), strict=True))
# What a round of training does to each metric, by arm; coevolved repairs some of what frozen breaks.
DRIFT = {
    "frozen": dict(zip(KEYS, (0.03, 0.5, 1.1, 0.22, 1.4, 0.8, 0.012, -0.08), strict=True)),
    "coevolved": dict(zip(KEYS, (0.035, 0.6, 1.3, 0.12, 0.6, -0.3, 0.010, -0.07), strict=True)),
}
SIDE, SHOWN, TOKENS = 48, 4, 36


def write_params(project: Path, seeds: list[int], rounds: int) -> Params:
    """The demo's params.yaml with other seeds, rounds and counts, loaded."""
    yaml = YAML(typ="safe", pure=True)
    data = yaml.load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
    data["seeds"] = seeds
    data["rounds"] = [{"id": index + 1, "prev": index} for index in range(rounds)]
    data["factorial"]["round"] = rounds
    data["evaluation"] |= {"prompts": SHOWN, "samples_per_prompt": 2, "pictures": SHOWN}
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(data, file)
    return load(project / "params.yaml")


def evaluation_metrics(arm: str, seed: int, round_id: int) -> dict[str, float]:
    """Metrics that drift with the round and differ by seed, and the same under the original decoder."""
    noise = np.random.default_rng([seed, round_id, len(arm)])
    drift = DRIFT.get(arm, dict.fromkeys(KEYS, 0.0))
    found = {k: BASE[k] + round_id * drift[k] * (1 + 0.4 * float(noise.standard_normal())) for k in KEYS}
    for place, category in enumerate(CATEGORIES):
        found[f"accuracy_{category.replace(' ', '_')}"] = found["accuracy"] + 0.05 * (place - 1.5)
    for key in ("accuracy", "clip", "reward", "fd", "fd_mid", "fd_patch"):
        found[f"{key}@original"] = found[key] + (0.3 if arm == "coevolved" else 0.0)
    for key in ("clip", "fd", "fd_mid", "fd_patch"):
        found |= {f"{key}_low": found[key] - 0.1, f"{key}_high": found[key] + 0.1}
    return found


def pictures(hue: int) -> torch.Tensor:
    """uint8 [SHOWN, 3, SIDE, SIDE]: a disc on a gradient; `hue` moves its colour."""
    rows, cols = np.mgrid[:SIDE, :SIDE]
    found = np.zeros((SHOWN, 3, SIDE, SIDE), np.uint8)
    for index in range(SHOWN):
        found[index] = (160 + rows + index).astype(np.uint8)
        inside = (rows - 20 - 2 * index) ** 2 + (cols - 24) ** 2 < 130
        found[index, (index + hue) % 3][inside] = 235
        found[index, (index + hue + 1) % 3][inside] = 40 + 8 * hue
    return torch.from_numpy(found)


def samples() -> pd.DataFrame:
    """Two passes over the prompts: prompt, category, correct, clip."""
    count = SHOWN * 2
    return pd.DataFrame(
        {
            "prompt": [PROMPTS[index % SHOWN] for index in range(count)],
            "category": [CATEGORIES[index % SHOWN] for index in range(count)],
            "correct": [index % 3 != 0 for index in range(count)],
            "clip": [70.0 + index for index in range(count)],
        }
    )


def write_evaluation(path: Path, arm: str, seed: int, round_id: int) -> None:
    """One evaluation artifact."""
    with ArtifactWriter(path, "evaluation", seed=1234) as out:
        out.json("metrics", evaluation_metrics(arm, seed, round_id))
        out.table("samples", samples())
        out.tensors("tokens", {"tokens": torch.zeros(SHOWN * 2, TOKENS, dtype=torch.int64)})
        out.tensors("pictures", {"pictures": pictures(seed + round_id), "original": pictures(seed)})


def log_table(round_id: int, steps: int, columns: tuple[str, ...]) -> pd.DataFrame:
    """A training log: `step` counts on through the rounds."""
    first = (round_id - 1) * steps
    step = np.arange(first, first + steps)
    return pd.DataFrame({"step": step} | {name: np.sin(step / 3 + i) for i, name in enumerate(columns)})


def write_training(project: Path, arm: str, seed: int, round_id: int) -> None:
    """The artifacts ranking, policy and decoder of one cell."""
    gain = DRIFT[arm]["reward"] * (round_id - 1) + 0.1 * seed
    with ArtifactWriter(project / artifact_path("ranking", arm, seed, round_id), "ranking", seed=seed) as out:
        out.json("metrics", {"reward_mean": 68.0 + gain, "reward_std": 2.0, "temperature": 1.0})
    with ArtifactWriter(project / artifact_path("policy", arm, seed, round_id), "policy", seed=seed) as out:
        out.table("log", log_table(round_id, 8, ("loss", "kl", "reward")))
        out.json("metrics", {"loss": 0.1, "kl": 0.01})
    trained = arm != "frozen"
    with ArtifactWriter(project / artifact_path("decoder", arm, seed, round_id), "decoder", seed=seed) as out:
        empty = pd.DataFrame({"step": pd.Series(dtype="int64")})
        out.table("log", log_table(round_id, 6, ("gan", "reconstruction")) if trained else empty)
        out.json("metrics", {"gan": 0.2} if trained else {})


def write_reference(project: Path) -> None:
    """The artifact reference."""
    rows = {f"real_{key}": BASE[key] * 0.2 for key in ("fd", "fd_mid", "fd_patch")}
    rows |= {"real_accuracy": 0.99, "real_clip": 76.0, "real_reward": 75.0}
    rows |= {key.replace("real", "reconstruction"): value * 0.95 for key, value in rows.items()}
    with ArtifactWriter(project / artifact_path("reference"), "reference", seed=1234) as out:
        out.json("metrics", rows)
        out.tensors("pictures", {"real": pictures(0), "reconstruction": pictures(0)})
        out.table("prompts", samples()[["prompt", "category"]][:SHOWN])


def write_factorial(project: Path, arms: list[str], seed: int, round_id: int) -> None:
    """The artifact factorial of one seed; a frozen decoder is the original one and has no column."""
    keys = ("clip", "fd", "fd_mid", "fd_patch", "accuracy", "reward")
    cells = {}
    for arm in arms:
        metrics = evaluation_metrics(arm, seed, round_id)
        cells[f"{arm}/original"] = {key: metrics[key] for key in keys}
        cells[f"{arm}/affine"] = {key: metrics[key] - 0.01 for key in keys}
        cells[f"{arm}/coevolved"] = {key: metrics[key] - 0.05 * (seed + 1) for key in keys}
    with ArtifactWriter(project / artifact_path("factorial", seed=seed), "factorial", seed=seed) as out:
        out.json("metrics", cells)


def write_project(project: Path, seeds: list[int] | None = None, rounds: int = 2) -> Params:
    """A whole finished run under `project`: params.yaml and every artifact that readers open."""
    params = write_params(project, [0, 1, 2] if seeds is None else seeds, rounds)
    write_reference(project)
    write_evaluation(project / artifact_path("baseline"), "base", 0, 0)
    for arm in params.arms:
        for seed in params.seeds:
            for round_id in range(1, rounds + 1):
                write_training(project, arm, seed, round_id)
                write_evaluation(project / artifact_path("evaluation", arm, seed, round_id), arm, seed, round_id)
    for seed in params.seeds:
        write_factorial(project, list(params.arms), seed, rounds)
    return params
