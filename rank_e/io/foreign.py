"""Models that are made from the configuration of others, or from sizes read off their files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rank_e.errors import listed
from rank_e.io.checkpoints import CheckpointError


@contextmanager
def foreign_model(where: str | Path) -> Iterator[None]:
    """The block makes a model on the meta device; CheckpointError naming `where` if no model has such sizes.

    Libraries check few of the values that they read, and raise whatever the first wrong one leads to.
    """
    try:
        with torch.device("meta"):
            yield
    except (RuntimeError, TypeError, ValueError, AssertionError, ArithmeticError, LookupError, AttributeError) as error:
        cause = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{where}: no model has such sizes ({cause}); download it again") from None


def check_floating(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """CheckpointError that names the first tensors of whole numbers: for models whose weights are all real ones."""
    if wrong := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise CheckpointError(f"{where} holds whole numbers in {listed(wrong)}; give a checkpoint of this model")
