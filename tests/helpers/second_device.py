"""A second device for tests on machines that have none: `second:0`, whose tensors lie in ordinary memory.

What happens to a GPU's tensors can be seen on it: branches on the device's type, operands on different devices, copies
between them, and values that the host waits for. Its arithmetic is the CPU's; autocast changes nothing on it, and
attention is computed as products, since the CPU's own kernel hides them. It can be made once in a process, before its
first backward pass.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from rank_e.backbones.decoding import attention  # noqa: F401  (registers its operation)
from tests.helpers.slot_attention import attend_by_hand

ROOT = Path(__file__).parents[2]
NAME = "second"
aten = torch.ops.aten
WAITS = (aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim)
"""Operations whose result, or its size, the host waits for; so does an index with a mask."""
STAND_INS: dict[Any, Callable[..., Any]] = {torch.ops.rank_e.attend_slots.default: attend_by_hand}
"""What a CPU has no kernel for."""
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class _Backend(_DummyBackendModule):
    _initialized = False  # no random state of its own, which checkpointing would keep

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class Event(NamedTuple):
    """What was seen: `kind` is upload, download, wait or forbidden; `loop` "" for none; `place` is FILE:FUNCTION."""

    loop: str
    kind: str
    operation: str
    place: str


class Placed(torch.Tensor):
    """A tensor on the second device; `data_` holds its values."""

    data_: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> Placed:
        with torch.inference_mode(False):  # views of parameters could not be counted otherwise
            made = torch.Tensor._make_wrapper_subclass(
                cls, data.size(), data.stride(), data.storage_offset(), dtype=data.dtype, device=torch.device(NAME, 0)
            )
        made.data_ = data
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert SecondDevice.used is not None
        return SecondDevice.used.run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Placed({self.data_})"

    def tolist(self) -> Any:
        return self.cpu().tolist()


def _empty(make: Any, *sizes: Any, device: Any = None, pin_memory: Any = None, **options: Any) -> Placed:
    return Placed(make(*sizes, device="cpu", **options))


class SecondDevice(TorchDispatchMode):
    """The device while the block runs; `events` counts what was seen. `forbidden(func, arguments)`: an operation's."""

    used: SecondDevice | None = None

    def __init__(self, forbidden: Callable[[Any, dict[str, Any]], bool]) -> None:
        super().__init__()
        _setup_privateuseone_for_python_backend(NAME, _Backend())
        # torch.tensor(..., device=...) makes its tensor where no mode looks.
        self._kernels = torch.library.Library("aten", "IMPL")
        for name in ("empty.memory_format", "empty_strided"):
            self._kernels.impl(name, partial(_empty, getattr(aten, name.split(".")[0])), "PrivateUse1")
        self._kernels.impl("_copy_from", self._copy_from, "PrivateUse1")
        self._any = torch.library.Library("_", "IMPL")
        self._any.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        self.device = torch.device(NAME, 0)
        self.forbidden, self.loop = forbidden, ""
        self.events: Counter[Event] = Counter()
        SecondDevice.used = self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    @contextmanager
    def inside(self, loop: str) -> Iterator[None]:
        """Events of the block belong to `loop`."""
        before, self.loop = self.loop, loop
        try:
            yield
        finally:
            self.loop = before

    def rename(self, loop: str, name: str) -> None:
        """What was seen in `loop` was seen in `name`."""
        for event in [event for event in self.events if event.loop == loop]:
            self.events[event._replace(loop=name)] += self.events.pop(event)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, on the values."""
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
        placed = [tensor for tensor in tensors if isinstance(tensor, Placed)]
        asked = kwargs.get("device")
        here = bool(placed) if asked is None else asked.type == NAME
        if not here and not placed:
            return func(*args, **kwargs)
        if func is aten._fused_sdp_choice.default:
            return 0  # products
        self._look(func, args, kwargs, tensors, placed, here)
        values = tree_map_only(Placed, lambda tensor: tensor.data_, (args, kwargs))
        given = values[1] if asked is None else values[1] | {"device": torch.device("cpu")}
        found = STAND_INS.get(func, func)(*values[0], **given)
        if not here:
            return found
        written = self._written(func, args, kwargs)
        if written and len(func._schema.returns) == len(written):
            return written[0] if len(written) == 1 else tuple(written)
        return tree_map_only(torch.Tensor, Placed, found)

    @staticmethod
    def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
        """The arguments that the operation writes and returns: it gives them back and no others."""
        found = []
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                found.append(args[place] if place < len(args) else kwargs[argument.name])
        return found

    def _copy_from(self, source: torch.Tensor, target: Placed, non_blocking: bool = False) -> Placed:
        self._note("upload", aten.copy_.default)
        target.data_.copy_(source)
        return target

    def _look(
        self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor], placed: list[Placed], here: bool
    ) -> None:
        packet = func.overloadpacket
        names = [argument.name for argument in func._schema.arguments]
        if self.forbidden(func, dict(zip(names, args, strict=False)) | kwargs):
            self._note("forbidden", func)
        elsewhere = [tensor for tensor in tensors if not isinstance(tensor, Placed)]
        if packet in (aten._to_copy, aten.copy_):
            towards = here if packet is aten._to_copy else isinstance(args[0], Placed)
            if towards and elsewhere:
                self._note("upload", func)
            elif not towards:
                self._note("download", func)
        elif elsewhere and packet in INDEXED:
            self._note("upload", func)
        elif placed and (strange := [tensor for tensor in elsewhere if tensor.ndim > 0]):
            raise RuntimeError(f"{func}: operands on {placed[0].device} and on {strange[0].device}")
        masks = packet in INDEXED and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        if masks or packet in WAITS:
            self._note("wait", func)

    def _note(self, kind: str, func: Any) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("rank_e", "stages"):
                function = frame.f_code.co_qualname.partition(".<locals>.<")[0].replace(".<locals>", "")
                place = f"{path.relative_to(ROOT)}:{function}"
                break
            frame = frame.f_back
        else:
            place = ""
        self.events[Event(self.loop, kind, func._schema.name, place)] += 1
