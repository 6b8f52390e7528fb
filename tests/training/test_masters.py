"""Float32 masters of bfloat16 weights: gradients add up in float32, and what is stored lies on the CPU."""

import torch
from torch import nn

from rank_e.training.masters import Masters
from tests.helpers.tiny_nets import copied


def test_gradients_of_parts_add_up_in_float32_and_steps_below_bfloat16_are_kept() -> None:
    half, full = nn.Parameter(torch.ones(4, dtype=torch.bfloat16)), nn.Parameter(torch.ones(4))
    masters = Masters([("half", half), ("full", full)])
    named = dict(masters.named)
    assert named["full"] is full and named["half"].dtype == torch.float32
    for _ in range(300):  # in bfloat16 the sum would stop at 256
        half.grad = torch.ones_like(half)
        masters.collect()
        assert half.grad is None
    assert torch.equal(named["half"].grad, torch.full((4,), 300.0))
    with torch.no_grad():
        for _ in range(8):
            named["half"] += 1e-3
            masters.publish()
    assert torch.equal(half, torch.full((4,), 1.008, dtype=torch.bfloat16))


def test_tensors_and_copies_are_their_own() -> None:
    masters = Masters(
        [("half", nn.Parameter(torch.ones(2, dtype=torch.bfloat16))), ("full", nn.Parameter(torch.ones(2)))]
    )
    stored, copy = copied(masters.tensors()), masters.copy()
    assert [x.data_ptr() for x in masters.tensors().values()] == [x.data_ptr() for _, x in masters.named]
    with torch.no_grad():
        for _, weight in masters.named:
            weight.zero_()
    for name, weight in copy.named:
        assert torch.equal(weight, torch.ones(2)) and not weight.requires_grad, name
    assert not any(x.requires_grad for x in masters.tensors().values())
    masters.load(stored)
    assert all(torch.equal(weight.float(), torch.ones(2)) for _, weight in masters.parameters)
