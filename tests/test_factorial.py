"""The affine control of the factorial: half of the pictures is corrected by a fit on the other half."""

import torch

from rank_e.metrics.affine import AffineControl
from rank_e.seeds import generator
from stages.factorial import affine


def test_no_picture_takes_part_in_its_own_correction() -> None:
    pictures = torch.rand(10, 3, 8, 8, generator=generator(0, "pictures")) * 0.5
    real = torch.rand(10, 3, 8, 8, generator=generator(0, "real"))
    corrected = affine(pictures, real)
    control = AffineControl.fit(pictures[1::2], real[1::2])
    assert torch.equal(corrected[4], control(pictures[4:5])[0])
    pictures[0], real[0] = 0.9, 0.1
    changed = affine(pictures, real)
    assert torch.equal(changed[2::2], corrected[2::2])  # of the changed one's own half
    assert not torch.equal(changed[1::2], corrected[1::2])
