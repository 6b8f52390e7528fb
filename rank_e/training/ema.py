"""Exponential moving averages and optimiser state as plain named tensors."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(average: Mapping[str, Tensor], online: Mapping[str, Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * online, in place, name by name."""
    torch._foreach_lerp_([average[name] for name in online], [online[name] for name in online], 1 - decay)


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Adam's moments and step counts under "NAME.exp_avg" and so on: what safetensors can hold."""
    return {
        f"{name}.{key}": value.detach().clone()
        for name, parameter in named
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`: a parameter that no gradient has reached has no moments, there as here.

    KeyError names a moment that is missing beside its others.
    """
    for name, parameter in named:
        if f"{name}.step" not in tensors:
            continue
        for key in ("step", "exp_avg", "exp_avg_sq"):
            # AdamW keeps its step count on the CPU; the moments lie with the parameter.
            place = "cpu" if key == "step" else parameter.device
            optimizer.state[parameter][key] = tensors[f"{name}.{key}"].to(place, copy=True)
