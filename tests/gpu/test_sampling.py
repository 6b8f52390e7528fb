"""Sampling on a GPU: the captured loop beside the plain one, and the kernel beside attention by hand."""

from pathlib import Path

import pytest
import torch

from rank_e.backbones.decoding.attention import attend_slots
from rank_e.sampling.distribution import SampledTokens, SamplingConfig
from rank_e.sampling.sampler import Sampler
from rank_e.seeds import generator
from tests.gpu.test_one_round import configure
from tests.helpers.one_round import Kind, OneRound
from tests.helpers.slot_attention import attend_by_hand

pytestmark = pytest.mark.gpu
CONFIG = SamplingConfig(guidance=3.0, top_k=48)


def both(kind: Kind, dtype: torch.dtype) -> list[SampledTokens]:
    """Twelve samples in batches of 5 by the captured loop, twice, and by the plain one."""
    made = OneRound(kind, "toy", torch.device("cuda"), dtype, Path())
    text, mask = made.text
    seeds = list(range(6 * len(text)))
    captured, plain = (Sampler(made.policy(), CONFIG, 5, fast=fast) for fast in (True, False))
    return [sampler(text, mask, seeds, 6) for sampler in (captured, captured, plain)]


@pytest.mark.parametrize("kind", ["llamagen", "janus"])
def test_a_captured_loop_has_the_plain_ones_bits_in_float32(kind: Kind) -> None:
    configure(deterministic=True)
    first, again, plain = both(kind, torch.float32)
    assert len(first.tokens.unique(dim=0)) == len(first.tokens)
    for found in (again, plain):
        assert torch.equal(found.tokens, first.tokens)
        # The last batch of a captured loop is filled up: its products have more rows.
        assert torch.equal(found.log_probs[:10], first.log_probs[:10])
        torch.testing.assert_close(found.log_probs, first.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llamagen", "janus"])
def test_a_compiled_loop_is_the_plain_one_up_to_rounding(kind: Kind) -> None:
    configure(deterministic=False)
    first, again, plain = both(kind, torch.bfloat16)
    assert torch.equal(first.tokens, again.tokens)
    same = (first.tokens == plain.tokens).cumprod(1).bool()
    assert same[:, 0].float().mean() > 0.5
    assert (first.log_probs - plain.log_probs).abs()[same].mean() < 0.1


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(4, 64), (2, 64), (4, 100), (1, 128)])
def test_the_kernel_is_attention_by_hand(kv_heads: int, head_dim: int) -> None:
    check_kernel(torch.device("cuda"), torch.bfloat16, kv_heads, head_dim)


def check_kernel(device: torch.device, dtype: torch.dtype, kv_heads: int, head_dim: int) -> None:
    """Rows that share runs of 0, 1, 64 and 130 of 150 slots; queries that are part of a wider tensor."""
    draw = generator(0, "slots")
    query = torch.randn(6, 2, 4, head_dim, generator=draw).to(device, dtype)[:, 1] * head_dim**-0.5
    keys, values = torch.randn(2, 4, 150, kv_heads, head_dim, generator=draw).to(device, dtype)
    which, used = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 1, 1, 2, 3, 3], [0, 1, 64, 130]))
    keys[used.argmin(), 0] = values[2, 64] = torch.nan  # what is not written is not read
    found = attend_slots(query, keys, values, which, used)
    expected = attend_by_hand(query, keys, values, which, used)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=2e-2)
