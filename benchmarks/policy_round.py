"""Seconds of a demo-sized round's policy update, and what it saves to score only the first minibatch before it.

Rollouts are sampled from the shipped base under the guidance of params.yaml; both ways are timed in turn, repeatedly.
Writes benchmarks/results/policy-round-<date>.json.
"""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from benchmarks.demo import machine
from rank_e.backbones import load_backbone
from rank_e.config import load
from rank_e.objectives.grpo import group_advantages
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import sample
from rank_e.seeds import generator
from rank_e.shapes import world
from rank_e.training.policy_update import PolicyUpdate, Rollouts

PROMPTS, REPEATS = 32, 5


def update_of(whole: bool) -> PolicyUpdate:
    """A fresh update over PROMPTS groups; `whole`: made as where every rollout is scored before the first step."""
    params, device = load(), torch.device("cpu")
    backbone = load_backbone("shapes", params.backbone.base, device, torch.float32)
    online, average, base = (backbone.policy(backbone.policy_weights()) for _ in range(3))
    drawn = params.rollouts
    config = SamplingConfig(drawn.guidance, drawn.temperature, drawn.top_k, drawn.top_p)
    text, mask = backbone.encode_text([prompt.text for prompt in world.prompts("train", PROMPTS, 0)])
    count = PROMPTS * drawn.group_size
    samples = sample(online, text, mask, list(range(count)), config, batch_size=128, repeats=drawn.group_size)
    rewards = torch.rand(PROMPTS, drawn.group_size, generator=generator(0, "rewards"))
    rollouts = Rollouts(text, mask, *samples, group_advantages(rewards).flatten(), rewards.flatten())
    update = PolicyUpdate(online, average, base, rollouts, params.policy, config, 0, 1, 0)
    if whole:
        # One minibatch of all rollouts is scored first, then the update goes through them as it would.
        minibatches, update.minibatches = update.minibatches, [torch.cat(update.minibatches)]
        seconds["all before"].append(timed(update.prepare))
        update.minibatches = minibatches
    else:
        seconds["first before"].append(timed(update.prepare))
    update.starts_from_reference = False  # as in every round but the first
    return update


def timed(work) -> float:
    """Wall seconds of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


seconds: dict[str, list[float]] = {"all before": [], "first before": [], "steps": []}


def main() -> None:
    """Time, print and write."""
    torch.set_num_threads(1)
    for _ in range(REPEATS):
        for whole in (True, False):
            update = update_of(whole)
            steps = timed(lambda update=update: [update.step(index) for index in range(update.steps)])
            seconds["steps"].append(steps)
    found = {name: round(median(values), 3) for name, values in seconds.items()}
    saved = 1 - (found["first before"] + found["steps"]) / (found["all before"] + found["steps"])
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "rollouts": PROMPTS * load().rollouts.group_size,
        "median_seconds": found,
        "share_of_the_policy_update_saved": round(saved, 3),
    }
    path = Path(__file__).parent / "results" / f"policy-round-{datetime.now(UTC).date()}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
