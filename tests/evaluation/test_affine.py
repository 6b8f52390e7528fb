"""The affine control: half of the images is corrected by a fit on the other half."""

import pytest
import torch

from rank_e.evaluation.affine import AffineControl, AffineHalves
from rank_e.seeds import generator


def whole(images: torch.Tensor, real: torch.Tensor, batch: int) -> torch.Tensor:
    """The images corrected as an evaluator does it: batch by batch, by fits on the first of them."""
    change = AffineHalves(images[: len(real)], real)
    starts = range(0, len(images), batch)
    return torch.cat([change(images[start : start + batch], start) for start in starts])


@pytest.mark.parametrize("batch", [3, 4, 14])
def test_no_image_takes_part_in_its_own_correction(batch: int) -> None:
    images = torch.rand(14, 3, 8, 8, generator=generator(0, "images")) * 0.5
    real = torch.rand(10, 3, 8, 8, generator=generator(0, "real"))
    corrected = whole(images, real, batch)
    control = AffineControl.fit(images[1:10:2], real[1::2])
    torch.testing.assert_close(corrected[4], control(images[4:5])[0])
    torch.testing.assert_close(corrected[12], control(images[12:13])[0])
    images[0], real[0] = 0.9, 0.1
    changed = whole(images, real, batch)
    assert torch.equal(changed[2::2], corrected[2::2])  # of the changed one's own half
    assert not torch.equal(changed[1::2], corrected[1::2])
