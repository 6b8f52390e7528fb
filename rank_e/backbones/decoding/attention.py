"""Attention of one new row of each sample to the slots that its cache holds, on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("rank_e::attend_slots", mutates_args=(), device_types="cuda")
def attend_slots(query: Tensor, keys: Tensor, values: Tensor, which: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of row n's query to the first used[which[n]] slots of run which[n]; scores are plain products.

    query [N, heads, D]; keys and values [R, S, kv_heads, D], contiguous; which int32 [N] in [0, R); used int32 [R] in
    [0, S]. Returns the means of values [N, heads, D] and the log-sum-exps of the scores, float32 [N, heads]: 0 and -inf
    for a row without slots. Sums are float32. For compilers it is one operation.
    """
    # Triton comes with PyTorch's builds for CUDA, and with no other.
    from rank_e.backbones.decoding.slot_kernel import launch

    return launch(query if query.stride(-1) == 1 else query.contiguous(), keys, values, which, used)


@attend_slots.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, which: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
    return mixed, query.new_empty(query.shape[:2], dtype=torch.float32)


def merge(one: Tensor, one_log_sum: Tensor, other: Tensor, other_log_sum: Tensor) -> Tensor:
    """Attention to two sets of slots together, from each one's mean [N, heads, D] and log-sum-exp [N, heads]."""
    share = torch.sigmoid(one_log_sum - other_log_sum).unsqueeze(-1)
    return torch.lerp(other.float(), one.float(), share).type_as(one)
