"""Sampling on a GPU: the captured loop beside the plain one, and the flash kernel beside attention by hand."""

from pathlib import Path

import pytest
import torch

from rank_e.backbones.decoding.flash import Packed, attend_packed
from rank_e.sampling.distribution import SampledTokens, SamplingConfig
from rank_e.sampling.sampler import Sampler
from rank_e.seeds import generator
from tests.gpu.test_one_round import configure
from tests.helpers.one_round import Kind, OneRound
from tests.helpers.packed_attention import attend_by_hand

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


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_flash_kernel_is_attention_by_hand(kv_heads: int) -> None:
    device, draw = torch.device("cuda"), generator(0, "packed")
    query = torch.randn(7, 4, 64, generator=draw).to(device, torch.bfloat16)
    keys, values = torch.randn(2, 30, kv_heads, 64, generator=draw).to(device, torch.bfloat16)
    # Runs of 1, 4 and 2 queries before 9, 3 and 1 of 10 slots each; one more run without queries.
    queries, slots, used = ([0, 1, 5, 7, 7], [0, 10, 20, 30, 30], [9, 3, 1, 0])
    parts = (torch.tensor(part, dtype=torch.int32, device=device) for part in (queries, slots, used))
    packed = Packed(*parts, 7, 10)
    found, expected = attend_packed(query, keys, values, packed), attend_by_hand(query, keys, values, packed)
    torch.testing.assert_close(found[0], expected[0], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(found[1], expected[1], atol=2e-2, rtol=2e-2)
