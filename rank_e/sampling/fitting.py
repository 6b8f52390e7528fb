"""How many samples fit into a device's free memory."""

from __future__ import annotations

import os

import torch

from rank_e.backbones.protocol import PolicyModel
from rank_e.sampling.distribution import SamplingConfig

SHARE = 0.8
"""Of the free memory; the rest is for what the loop holds besides, and for fragmentation."""
LOGIT_BYTES = 64
"""What choosing a token holds for each of a row's logits: float32 copies, and float64 cumulative sums."""
MOST_ON_CPU = 128
"""More rows at once do not make a CPU faster."""


def fitting_batch(policy: PolicyModel, config: SamplingConfig, count: int) -> int:
    """How many of `count` samples to draw at once, at least 1: as many as SHARE of the free memory holds.

    Batches are then made equal, so that the last one is not almost empty.
    """
    row = policy.cache_bytes + LOGIT_BYTES * policy.vocab_size
    most = max(1, int(SHARE * free_bytes(policy.device)) // (config.branches * row))
    if policy.device.type == "cpu":
        most = min(most, MOST_ON_CPU)
    batches = -(-count // most)
    return -(-count // batches)


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses, of the device or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
