"""Models that are made from the configuration of others, or from sizes read off their files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

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
