"""How many samples are drawn at once where `batch_size` is auto."""

import pytest
import torch

from rank_e.sampling import fitting
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.fitting import LOGIT_BYTES, SHARE, fitting_batch
from tests.helpers.tiny_nets import tiny_policy


@torch.no_grad()
def test_a_row_of_the_cache_is_counted_as_it_is_allocated():
    policy = tiny_policy()
    prefix = policy.prefix(*_text(policy, 3))
    layers = policy.cache(prefix).slots.layers
    text_slots = 1
    held = sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))
    assert held == 3 * policy.cache_bytes * (policy.length + text_slots) // policy.length


@pytest.mark.parametrize(("rows", "branches", "expected"), [(10, 1, 9), (10, 2, 5), (1000, 2, 45), (0, 1, 1)])
def test_batches_fill_the_free_memory_and_are_equal(monkeypatch, rows, branches, expected):
    policy = tiny_policy()
    row = policy.cache_bytes + LOGIT_BYTES * policy.vocab_size
    monkeypatch.setattr(fitting, "free_bytes", lambda device: int(rows * row / SHARE) + 1)
    config = SamplingConfig(1.0 if branches == 1 else 2.0)
    assert fitting_batch(policy, config, 45) == expected


def test_a_cpu_gets_no_more_than_makes_it_faster():
    assert fitting_batch(tiny_policy(), SamplingConfig(), 1000) == 125


def test_free_memory_is_of_this_machine():
    policy = tiny_policy()
    assert 1e6 < fitting.free_bytes(policy.device) < 1e14


def _text(policy, count):
    rows, width = policy.cls_embedding.uncond_embedding.shape
    return torch.zeros(count, rows, width), torch.ones(count, rows, dtype=torch.bool)
