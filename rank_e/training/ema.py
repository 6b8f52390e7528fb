"""Exponential moving averages of named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(average: Mapping[str, Tensor], online: Mapping[str, Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * online, in place, name by name."""
    torch._foreach_lerp_([average[name] for name in online], [online[name] for name in online], 1 - decay)
