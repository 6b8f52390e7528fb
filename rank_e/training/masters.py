"""Float32 masters of weights that compute in bfloat16, where a step of 1e-5 would be lost to rounding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rank_e.errors import RankEError


class Masters:
    """For each parameter, itself if it is float32, else a float32 copy that the optimiser moves in its stead."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.parameters = list(named)
        self.named = [(name, _master(parameter)) for name, parameter in self.parameters]

    def copy(self) -> Masters:
        """The same float32 weights in tensors of their own, which no network reads: an average to begin with."""
        return Masters((name, nn.Parameter(x.detach().clone(), requires_grad=False)) for name, x in self.named)

    def collect(self) -> None:
        """Add the parameters' gradients to the float32 ones, where they are not the same tensors."""
        for (_, parameter), (_, master) in zip(self.parameters, self.named, strict=True):
            if parameter is not master and parameter.grad is not None:
                if master.grad is None:
                    master.grad = parameter.grad.float()
                else:
                    master.grad += parameter.grad  # computed in float32
                parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Give the parameters the masters' values, rounded to their dtype."""
        for (_, parameter), (_, master) in zip(self.parameters, self.named, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def tensors(self) -> dict[str, Tensor]:
        """The float32 weights by name, where they lie: no copies."""
        return {name: weight.detach() for name, weight in self.named}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy float32 weights in and publish them; RankEError names one that is missing."""
        for name, master in self.named:
            if name not in tensors:
                raise RankEError(f"weights: no tensor {name}; reproduce the stage that wrote them")
            master.copy_(tensors[name])
        self.publish()


def _master(parameter: nn.Parameter) -> nn.Parameter:
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
