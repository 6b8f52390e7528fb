"""Images as bytes, in [0, 1] and in [-1, 1]: what is rounded, what is refused, and that ways back undo ways there."""

import pytest
import torch

from rank_e.errors import RankEError
from rank_e.io.pixels import from_bytes, from_signed, to_bytes, to_signed

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_bytes_are_rounded_and_checked() -> None:
    assert to_bytes(torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.501 / 255, 1.0, 2.0])).tolist() == [0, 0, 0, 1, 255, 255]
    with pytest.raises(RankEError, match="NaN"):
        to_bytes(torch.tensor([float("nan")]))
    with pytest.raises(RankEError, match="int64"):
        to_bytes(torch.tensor([1]))


def test_every_level_comes_back() -> None:
    unit = from_bytes(LEVELS)
    assert unit.dtype == torch.float32 and (unit[0], unit[51], unit[255]) == (0, 0.2, 1)
    assert torch.equal(to_bytes(unit), LEVELS) and torch.equal(to_bytes(LEVELS), LEVELS)
    assert torch.equal(to_bytes(from_signed(to_signed(unit))), LEVELS)


def test_a_tokenizers_range_is_kept_beyond_its_ends() -> None:
    signed = torch.tensor([-1.5, -1.0, 0.0, 1.0, 3.0], dtype=torch.bfloat16, requires_grad=True)
    unit = from_signed(signed)
    assert unit.tolist() == [-0.25, 0.0, 0.5, 1.0, 2.0] and to_signed(unit).tolist() == signed.tolist()
    assert unit.dtype == torch.bfloat16
    unit.sum().backward()
    assert signed.grad is not None and (signed.grad == 0.5).all()
