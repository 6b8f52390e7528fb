"""The Triton kernel behind `attention.attend_slots`: each row's slots are read once, at the memory's speed.

A step of decoding has one query a row, so attention is bound by reading keys and values; kernels made for many queries
(PyTorch's flash attention works in tiles of 128) spend most of their time on rows that are not there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Slots that a program reads at a time."""


@triton.jit
def _attend(
    query, keys, values, which, used, mixed, log_sums,
    query_row, query_head, slots, kv_heads, group, dim,
    PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one head of one row, softmax and mean in one pass (arXiv 1805.02867)."""
    head, row, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    place = tl.arange(0, PADDED)
    inside = place < dim
    asked = tl.load(query + row * query_row + head * query_head + place, mask=inside, other=0.0).to(tl.float32)
    run = tl.load(which + row).to(tl.int64)
    count = tl.load(used + run)
    first = (run * slots * kv_heads + head // group) * dim
    largest, total = tl.full([], float("-inf"), tl.float32), tl.full([], 0.0, tl.float32)
    sums = tl.zeros([PADDED], dtype=tl.float32)
    for start in range(0, count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        written = slot < count
        at = first + slot[:, None] * (kv_heads * dim) + place[None, :]
        there = written[:, None] & inside[None, :]
        key = tl.load(keys + at, mask=there, other=0.0).to(tl.float32)
        value = tl.load(values + at, mask=there, other=0.0).to(tl.float32)
        scores = tl.where(written, tl.sum(key * asked[None, :], 1), float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 0))
        kept, shares = tl.exp(largest - larger), tl.exp(scores - larger)
        sums = sums * kept + tl.sum(value * shares[:, None], 0)
        total = total * kept + tl.sum(shares, 0)
        largest = larger
    seen = count > 0
    out = (row.to(tl.int64) * heads + head) * dim + place
    tl.store(
        mixed + out, tl.where(seen, sums / tl.where(seen, total, 1.0), 0.0).to(mixed.dtype.element_ty), mask=inside
    )
    tl.store(log_sums + row * heads + head, tl.where(seen, largest + tl.log(total), float("-inf")))


def launch(query: Tensor, keys: Tensor, values: Tensor, which: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """`attention.attend_slots` on the tensors' device; keys and values are contiguous, a query's last dimension too."""
    rows, heads, dim = query.shape
    _, slots, kv_heads, _ = keys.shape
    mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
    log_sums = torch.empty(rows, heads, device=query.device)
    _attend[(heads, rows)](
        query, keys, values, which, used, mixed, log_sums,
        query.stride(0), query.stride(1), slots, kv_heads, heads // kv_heads, dim,
        PADDED=triton.next_power_of_2(dim), BLOCK=BLOCK,
    )  # fmt: skip
    return mixed, log_sums
