"""How a policy's layers are called: as they are, recomputed in the backward pass, or compiled once for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run_layer(function: Callable[..., Any], checkpointing: bool, *inputs: Any) -> Any:
    """function(*inputs), recomputed in the backward pass if asked to."""
    return checkpoint(function, *inputs, use_reentrant=False) if checkpointing else function(*inputs)


def layer_kernel(function: Callable[..., Any], x: Tensor, fast: bool) -> Callable[..., Any]:
    """The function that is to run for a layer's rows x: itself, or if `fast` compiled, for half precision on CUDA.

    Float32 keeps its bits.
    """
    return compiled(function) if fast and x.is_cuda and x.dtype != torch.float32 else function


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once a process for all layers; the compiler keeps its kernels on disk for the next process."""
    return torch.compile(function, dynamic=False, fullgraph=True)
