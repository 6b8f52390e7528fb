"""What stale rollouts cost on the embedded world: 1, 4, 16 or 64 policy updates from one round's rollouts.

    python -m benchmarks.staleness [--device cuda] [--jobs 4] [--updates 64] [--seeds 0 1 2]

All runs make the same number of updates from the same number of rollouts (8 prompts x 8 an update); what differs is
how many updates old the policy is that sampled them. Each run ends with the averaged policy's images of training
captions and of validation captions, compositions that no training has seen; the table begins with the base's.

Writes benchmarks/results/staleness-<date>.json: every run, and means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks.measuring import RESULTS, commit, machine
from rank_e.backbones import load_backbone
from rank_e.config import load
from rank_e.io.pixels import from_signed, to_bytes
from rank_e.objectives.grpo import group_advantages
from rank_e.rewards.mixture import build_rewards
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import Sampler
from rank_e.seeds import seed_for
from rank_e.shapes.dataset import ShapesDataset
from rank_e.shapes.metrics import checker
from rank_e.training.policy_update import PolicyUpdate, Rollouts

ROOT = Path(__file__).parents[1]
STALENESS = (1, 4, 16, 64)
PROMPTS_AN_UPDATE, AT_ONCE = 8, 128
WEIGHTS = ROOT / "assets" / "shapes"


@dataclass(frozen=True)
class Run:
    """One run: settings, what its updates logged (means), and what its policy is worth at the end.

    reward: mean over the images; accuracy: percent that the checker accepts; train: of training captions, else of
    validation; kl: to the base, at the last update.
    """

    updates_a_round: int
    seed: int
    reward_train: float
    accuracy_train: float
    reward: float
    accuracy: float
    kl: float
    clip_fraction: float
    ratio_deviation: float
    seconds: float


def run(updates_a_round: int, seed: int, updates: int, images: int, device: str) -> Run:
    """Train `updates` updates, then judge `images` images of each kind; 0 updates a round: the base."""
    torch.set_num_threads(1)
    began, place, params = time.monotonic(), torch.device(device), load(ROOT / "profiles" / "shapes.yaml")
    arm = params.arm("frozen")
    group, settings = arm.rollouts.group_size, arm.policy
    backbone = load_backbone("shapes", WEIGHTS, place, torch.float32)
    online, average, base = (backbone.policy(backbone.policy_weights()) for _ in range(3))
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    rewards = build_rewards(arm.ranking.rewards, WEIGHTS, place)
    config = SamplingConfig(arm.rollouts.guidance)
    sampler, train = Sampler(online, config, AT_ONCE, fast=True), ShapesDataset("train")

    @torch.no_grad()
    def judged(tokens: torch.Tensor, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images in [0, 1] and their rewards."""
        parts = []
        for start in range(0, len(tokens), AT_ONCE):
            drawn = from_signed(tokenizer.decode_tokens(tokens[start : start + AT_ONCE])).clamp(0, 1)
            scores = rewards.raw_scores(drawn, list(texts[start : start + AT_ONCE]))
            parts.append((drawn, rewards.combine(scores)))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    state, log = None, []
    for number in range(updates // updates_a_round if updates_a_round else 0):
        count = PROMPTS_AN_UPDATE * updates_a_round
        prompts = [text for text, _ in train.prompts(count, seed_for(seed, "prompts", number))]
        text, mask = backbone.encode_text(prompts)
        seeds = [seed_for(seed, "rollouts", number, p, g) for p in range(len(prompts)) for g in range(group)]
        samples = sampler(text, mask, seeds, group)
        found = judged(samples.tokens, [prompt for prompt in prompts for _ in range(group)])[1]
        advantages = group_advantages(found.view(-1, group)).flatten()
        rollouts = Rollouts(text, mask, samples.tokens, samples.log_probs, advantages, found)
        update = PolicyUpdate(online, average, base, rollouts, settings, config, seed, number, len(log))
        if state is not None:
            update.load(state)
        update.prepare()
        log += [update.step(index) for index in range(update.steps)]
        state = update.state()
    found_on = {}
    for split in ("train", "validation"):
        captions = [text for text, _ in ShapesDataset(split).prompts(images, 777)]
        text, mask = backbone.encode_text(captions)
        seeds = [seed_for(777, "evaluation", index) for index in range(images)]
        tokens = Sampler(average, config, AT_ONCE, fast=True)(text, mask, seeds).tokens
        drawn, found = judged(tokens, captions)
        accepted = checker(WEIGHTS, place)(list(to_bytes(drawn)), captions)
        found_on[split] = round(found.mean().item(), 3), round(100 * float(accepted.float().mean()), 2)
    return Run(
        updates_a_round,
        seed,
        *found_on["train"],
        *found_on["validation"],
        kl=round(log[-1]["kl"], 5) if log else 0.0,
        clip_fraction=round(mean(row["clip_fraction"] for row in log), 5) if log else 0.0,
        ratio_deviation=round(mean(row["ratio_deviation"] for row in log), 4) if log else 0.0,
        seconds=round(time.monotonic() - began, 1),
    )


def main() -> None:
    """Run all, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--updates", type=int, default=64, help="updates of each run, a multiple of 64")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.updates % max(STALENESS):
        parser.error(f"--updates {given.updates}: give a multiple of {max(STALENESS)}")
    moment, began = datetime.now(UTC), time.monotonic()
    cells = [(given.seeds[0], 0), *product(given.seeds, STALENESS)]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, stale, seed, given.updates, given.images, given.device) for seed, stale in cells]
        runs = []
        for future in futures:
            runs.append(future.result())
            print(runs[-1], flush=True)
    names = ("reward_train", "accuracy_train", "reward", "accuracy", "kl", "clip_fraction", "ratio_deviation")
    by_staleness = {}
    for stale in (0, *STALENESS):
        rows = [asdict(item) for item in runs if item.updates_a_round == stale]
        values = {name: [row[name] for row in rows] for name in names}
        by_staleness[stale] = {
            name: {"mean": round(mean(found), 5), "sd": round(stdev(found), 5) if len(found) > 1 else None}
            for name, found in values.items()
        }
    result = {
        "date": moment.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(torch.device(given.device)),
        "seconds": round(time.monotonic() - began, 1),
        "updates": given.updates,
        "rollouts_an_update": PROMPTS_AN_UPDATE * 8,
        "images": given.images,
        "by_updates_a_round": by_staleness,
        "runs": [asdict(item) for item in runs],
    }
    path = given.output / f"staleness-{moment:%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(by_staleness, indent=2), f"\n{path}")


if __name__ == "__main__":
    main()
