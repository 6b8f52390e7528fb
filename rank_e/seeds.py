"""Every random number of the project starts here: a seed is a hash of the names of what it is for.

A seed depends on the run's seed and on names alone (stage, round, index), never on batch size, order, device or
on what ran before, so that two arms see the same numbers for the same prompts and a killed run repeats itself.
"""

import hashlib

import torch


def seed_for(run_seed: int, *names: str | int) -> int:
    """Hash the run's seed and a path of names to a seed in [0, 2^63)."""
    text = "/".join(str(name) for name in (run_seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, *names: str | int) -> torch.Generator:
    """A fresh CPU generator for what is called `names`; CPU, so that every device sees the same numbers."""
    return torch.Generator().manual_seed(seed_for(run_seed, *names))
