"""LPIPS with VGG16 (arXiv 1801.03924, version 0.1): the `lpips` package's network and heads, a local VGG16 file."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.io.checkpoints import check_finite, check_shapes, read_tensors, shapes_of
from rank_e.io.files import state_of
from rank_e.precision import channels_last, float32_island

SMALLEST_SIDE = 16  # four poolings


class LpipsVGG:
    """d(a, b): images [N, 3, H, W] in [0, 1], sides >= 16 -> mean distance, a scalar >= 0, zero for equal images.

    Differentiable in both; frozen, float32, on `device`. Under autocast VGG16 computes in bfloat16 and what is made of
    its maps in float32.
    """

    def __init__(self, vgg16: Path, device: torch.device | str = "cpu") -> None:
        """vgg16: torchvision's VGG16 (vgg16-397923af.pth, `features.*`; the classifier may be missing).

        Nothing is downloaded: the heads come with the package. RankEError names a file that is not such a VGG16.
        """
        from rank_e.io.torchvision_ops import declare_torchvision_ops

        declare_torchvision_ops()
        import lpips

        tensors = {name: x for name, x in read_tensors(vgg16).items() if not name.startswith("classifier.")}
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # names of its arguments
            # pnet_rand: the package would otherwise download VGG16; its random weights are replaced at once.
            self.network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        # The package cuts `features` into slices that keep the layers' numbers: slice2.5.weight is features.5.weight.
        names = {f"features.{name.split('.', 1)[1]}": name for name in self.network.net.state_dict()}
        own = self.network.net.state_dict()
        check_shapes(tensors, shapes_of({theirs: own[ours] for theirs, ours in names.items()}), vgg16)
        check_finite(tensors, vgg16)
        self.network.net.load_state_dict({names[name]: x for name, x in tensors.items()}, strict=True)
        self.network.float().eval().requires_grad_(False).to(device)

    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        """d of each pair: float32 [N]."""
        import lpips

        for images in (a, b):
            if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST_SIDE:
                raise RankEError(
                    f"LPIPS: images {tuple(images.shape)}; give [N, 3, H, W] with sides >= {SMALLEST_SIDE}"
                )
        unit = lpips.normalize_tensor
        pairs = zip(self.features(a), self.features(b), self.network.lins, strict=True)
        with float32_island(a.device):  # small differences of features are formed in float32
            squares = [head((unit(x.float()) - unit(y.float())) ** 2).mean((1, 2, 3)) for x, y, head in pairs]
            return torch.stack(squares).sum(0)

    def features(self, images: Tensor) -> list[Tensor]:
        """VGG16's five maps of images [N, 3, H, W] in [0, 1]."""
        maps: list[Tensor] = list(self.network.net(channels_last(self.network.scaling_layer(2 * images.float() - 1))))
        return maps

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distances(a, b).mean()


def lpips(folder: Path, device: torch.device, *, file: str) -> LpipsVGG:
    """LPIPS with the VGG16 of `file` within `folder`: one for all in this process, as long as the file is the same."""
    return _shared(folder / file, device, state_of(folder / file))


@lru_cache(maxsize=1)
def _shared(vgg16: Path, device: torch.device, state: object) -> LpipsVGG:
    return LpipsVGG(vgg16, device)
