"""Importing open_clip beside a torch that torchvision's compiled operators were not built for.

torchvision registers shape functions for its operators when it is imported, and fails if the compiled library, which
defines them, cannot be loaded. Nothing here runs those operators: declaring their schemas is enough.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[Any] = []  # a library's definitions live as long as the object


def declare_torchvision_ops() -> bool:
    """Declare `torchvision::nms` and `qnms` if the compiled operators cannot load; True when it was needed.

    With a matching torch and torchvision the compiled library loads and nothing is declared.
    """
    if _declared:
        return True
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed; install requirements.lock")
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
            return False
        except OSError:  # built for another torch (for example CUDA libraries beside a CPU build)
            continue
    namespace = torch.library.Library("torchvision", "DEF")
    namespace.define(f"nms{_SCHEMA}")
    namespace.define(f"qnms{_SCHEMA}")
    _declared.append(namespace)
    return True


def import_open_clip() -> ModuleType:
    """The open_clip module."""
    declare_torchvision_ops()
    return import_module("open_clip")
