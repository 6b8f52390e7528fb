"""What the kernel of `attend_slots` computes, on any device: one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_by_hand(query: Tensor, keys: Tensor, values: Tensor, which: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """`rank_e.backbones.decoding.attention.attend_slots`."""
    mixed, log_sums = torch.zeros_like(query), query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32)
    groups = query.shape[1] // keys.shape[2]
    for row, run in enumerate(which.tolist()):
        count = int(used[run])
        if count == 0:
            continue
        seen, made = (x[run, :count].repeat_interleave(groups, 1).float() for x in (keys, values))
        scores = torch.einsum("hd,shd->hs", query[row].float(), seen)
        log_sums[row] = scores.logsumexp(-1)
        mixed[row] = torch.einsum("hs,shd->hd", scores.softmax(-1), made).type_as(query)
    return mixed, log_sums
