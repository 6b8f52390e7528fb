"""What the flash kernel of packed rows computes, on any device: one run and all its heads at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rank_e.backbones.decoding.flash import Packed


def attend_by_hand(query: Tensor, keys: Tensor, values: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """`rank_e.backbones.decoding.flash.attend_packed`; rows of no run stay undefined."""
    mixed, log_sums = torch.full_like(query, math.nan), query.new_full(query.shape[:2], math.nan, dtype=torch.float32)
    groups = query.shape[1] // keys.shape[1]
    for run, used in enumerate(packed.used.tolist()):
        begin, rows = int(packed.slots[run]), slice(int(packed.queries[run]), int(packed.queries[run + 1]))
        if used == 0 or rows.start == rows.stop:
            continue
        seen, made = (x[begin : begin + used].repeat_interleave(groups, 1).float() for x in (keys, values))
        scores = torch.einsum("qhd,shd->qhs", query[rows].float(), seen)
        log_sums[rows] = scores.logsumexp(-1)
        mixed[rows] = torch.einsum("qhs,shd->qhd", scores.softmax(-1), made).type_as(query)
    return mixed, log_sums


def flash_forward(query: Tensor, keys: Tensor, values: Tensor, *given: Any, **options: Any) -> tuple[Any, ...]:
    """Stands for `torch.ops.aten._flash_attention_forward` as `attend_packed` calls it."""
    starts, slots, longest_queries, longest_slots = given[:4]
    packed = Packed(starts, slots, options["seqused_k"], longest_queries, longest_slots)
    mixed, log_sums = attend_by_hand(query, keys, values, packed)
    return mixed, log_sums.T.contiguous(), *(query.new_empty(0) for _ in range(3))
