"""`python -m tests.helpers.second_device_checks`: whether `SecondDevice` sees what it should; in its own process."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rank_e.io.resize import resize, resize_by_products
from rank_e.seeds import generator
from tests.helpers.on_second_device import AFTER, LISTED, nondeterministic, watch_sampling
from tests.helpers.second_device import Placed, SecondDevice

MAPS = (1, 2, 8, 8)


def resized(mode: str, antialias: bool = False, shape: tuple[int, ...] = MAPS, size: int = 5) -> Callable[..., Tensor]:
    return lambda x: F.interpolate(x.reshape(shape), size=(size,) * (len(shape) - 2), mode=mode, antialias=antialias)


def padded(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.pad(x.view(shape), (1, 1) * (len(shape) - 2), "reflect")


DIFFERENTIATED: dict[str, Callable[[Tensor], Tensor]] = {
    "avg_pool3d_backward": lambda x: F.avg_pool3d(x.view(1, 2, 4, 4, 4), 2),
    "_adaptive_avg_pool2d_backward": lambda x: F.adaptive_avg_pool2d(x, 3),
    "_adaptive_avg_pool3d_backward": lambda x: F.adaptive_avg_pool3d(x.view(1, 2, 4, 4, 4), 3),
    "adaptive_max_pool2d_backward": lambda x: F.adaptive_max_pool2d(x, 3),
    "fractional_max_pool2d_backward": lambda x: F.fractional_max_pool2d(x, 2, output_size=3),
    "fractional_max_pool3d_backward": lambda x: F.fractional_max_pool3d(x.view(1, 2, 4, 4, 4), 2, output_size=2),
    "upsample_linear1d_backward": resized("linear", shape=(1, 2, 64)),
    "upsample_bilinear2d_backward": resized("bilinear"),
    "upsample_bicubic2d_backward": resized("bicubic"),
    "upsample_trilinear3d_backward": resized("trilinear", shape=(1, 2, 4, 4, 4)),
    "_upsample_bilinear2d_aa_backward": resized("bilinear", antialias=True),
    "_upsample_bicubic2d_aa_backward": resized("bicubic", antialias=True),
    "reflection_pad1d_backward": padded(1, 2, 64),
    "reflection_pad2d_backward": padded(1, 2, 8, 8),
    "reflection_pad3d_backward": padded(1, 2, 4, 4, 4),
    "_embedding_bag_backward": lambda x: F.embedding_bag(
        torch.zeros(1, 2, dtype=torch.int64, device=x.device), x.view(16, 8), mode="max"
    ),
    "grid_sampler_2d_backward": lambda x: F.grid_sample(x, x.detach().view(1, 8, 8, 2), align_corners=False),
    "grid_sampler_3d_backward": lambda x: F.grid_sample(
        x.view(1, 2, 4, 4, 4), torch.zeros(1, 2, 2, 2, 3, device=x.device), align_corners=False
    ),
    "_ctc_loss_backward": lambda x: F.ctc_loss(
        x.view(16, 1, 8).log_softmax(-1), torch.ones(1, 3, dtype=torch.int64, device=x.device), (16,), (3,)
    ),
}
CALLED: dict[str, Callable[[Tensor], object]] = {
    "max_unpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "max_unpool3d": lambda x: F.max_unpool3d(*F.max_pool3d(x.view(1, 2, 4, 4, 4), 2, return_indices=True), 2),
    "nll_loss2d_forward": lambda x: F.nll_loss(x, torch.zeros(1, 8, 8, dtype=torch.int64, device=x.device)),
    "put_": lambda x: x.clone().put_(torch.zeros(1, dtype=torch.int64, device=x.device), x.flatten()[:1]),
    "put": lambda x: x.put(torch.zeros(1, dtype=torch.int64, device=x.device), x.flatten()[:1]),
    "histc": lambda x: x.histc(4),
    "bincount": lambda x: (x.flatten() > 0).long().bincount(x.flatten()),
    "median": lambda x: x.median(0),
    "nanmedian": lambda x: x.nanmedian(0),
    "cumsum": lambda x: x.cumsum(0),
    "cumsum_": lambda x: x.clone().cumsum_(0),
    "scatter_reduce": lambda x: x.scatter_reduce(0, torch.zeros_like(x, dtype=torch.int64), x, "prod"),
    "scatter_reduce_": lambda x: x.clone().scatter_reduce_(0, torch.zeros_like(x, dtype=torch.int64), x, "prod"),
}
HARMLESS: dict[str, Callable[[Tensor], object]] = {
    "cumsum of integers": lambda x: (x > 0).cumsum(0),
    "bincount without weights": lambda x: (x.flatten() > 0).long().bincount(),
    "scatter_reduce of sums": lambda x: x.scatter_reduce(0, torch.zeros_like(x, dtype=torch.int64), x, "sum"),
    "median without places": lambda x: x.median(),
    "interpolation without a gradient": lambda x: resized("bicubic", antialias=True)(x.detach()),
}


class Steps(nn.Module):
    """A policy as far as the watch of the token loop knows it."""

    def cache(self) -> None: ...

    def refill(self) -> None: ...

    def step(self, x: Tensor) -> Tensor:
        return x * 2


def kinds(device: SecondDevice, call: Callable[[], object]) -> list[tuple[str, str]]:
    """(kind, operation) of what is seen during the call."""
    device.events.clear()
    call()
    return sorted((event.kind, event.operation.removeprefix("aten::")) for event in device.events)


def main() -> None:
    device = SecondDevice(nondeterministic)
    host = torch.rand(MAPS, generator=generator(0, "maps"))
    with device:
        x = host.to(device.device).requires_grad_()

        assert {f"aten::{name}" for name in (*DIFFERENTIATED, *CALLED)} == LISTED.keys()
        for name, function in DIFFERENTIATED.items():
            seen = kinds(device, lambda function=function: function(x).sum().backward())  # type: ignore[misc]
            assert ("forbidden", name) in seen, (name, seen)
        for name, called in (CALLED | HARMLESS).items():
            seen = kinds(device, lambda called=called: called(x.detach()))  # type: ignore[misc]
            assert (("forbidden", name) in seen) == (name in CALLED), (name, seen)

        # What a GPU does: values stay where they are, operands lie together, branches on the device's type are taken.
        assert isinstance(x, Placed) and x.device.type == "second" and not x.is_cpu
        assert kinds(device, lambda: (x * 2 + torch.ones((), device=device.device)).relu()) == []
        try:
            x + host
        except RuntimeError as error:
            assert "operands on second:0 and on cpu" in str(error)
        else:
            raise AssertionError("operands on two devices were added")
        assert kinds(device, lambda: host.to(x)) == [("upload", "_to_copy")]
        assert kinds(device, lambda: torch.tensor([1.0], device=x.device)) == [("upload", "copy_")]
        assert kinds(device, lambda: x[torch.tensor([0])]) == [("upload", "index")]
        assert kinds(device, lambda: x.detach().cpu()) == [("download", "_to_copy")]
        assert kinds(device, lambda: float(x.detach().sum())) == [("wait", "_local_scalar_dense")]
        assert kinds(device, lambda: x.detach()[x > 0.5]) == [("wait", "index")]
        assert kinds(device, lambda: (x > 0.5).nonzero()) == [("wait", "nonzero")]

        # Resizing there is by products: no operation of the list, and the CPU's values and gradients.
        found = []
        for function, images in ((resize, x.detach().requires_grad_()), (F.interpolate, host.clone().requires_grad_())):
            options = {} if function is resize else {"mode": "bicubic", "antialias": True, "align_corners": False}
            size = (5, 6) if function is resize else ((5, 6),)
            device.events.clear()
            out = function(images, *size, **options)
            (gradient,) = torch.autograd.grad(out.square().sum(), images)
            found.append((out.detach().cpu(), gradient.cpu()))
            assert not [event for event in device.events if event.kind == "forbidden"]
        torch.testing.assert_close(*found, rtol=0, atol=1e-5)

        # Of sampling, what lies between two steps of a batch belongs to the loop, what lies around them does not.
        steps: list[int] = []
        watch_sampling(device, Steps, steps)
        policy = Steps()
        device.events.clear()
        for _ in range(2):
            y = x.detach()
            y.sum().item()
            policy.cache()
            y.sum().item()
            y = policy.step(y)
            y[y > 0].sum()
            policy.step(y).sum().item()
        loops = {(event.loop, event.operation) for event in device.events}
        assert ("sampling", "aten::index") in loops and ("sampling", "aten::_local_scalar_dense") not in loops
        assert (AFTER, "aten::_local_scalar_dense") in loops and len(steps) == 4
    assert torch.equal(resize_by_products(host, 8, 8), host)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
