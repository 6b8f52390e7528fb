"""What operators allocate on a CPU: how much of it lives, and the most that ever lived together."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Remembers every tensor that operators made, forward and backward, and says how much of it still lives."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        """Bytes behind operators; what one of them takes and gives back inside is not seen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                self.made[storage.cdata] = (storage, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.alive())
        return out

    def alive(self) -> int:
        self.made = {key: held for key, held in self.made.items() if not held[0].expired()}
        return sum(size for _, size in self.made.values())
