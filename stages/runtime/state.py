"""Mid-stage state: how a killed stage goes on where it was, and ends in the same bytes."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_e.io.sealed import SealError, read_tensors, write_tensors
from stages.runtime.phases import PHASES
from stages.runtime.termination import TERMINATION

if TYPE_CHECKING:
    import torch

SAVE_SECONDS = 10.0
"""How much work a kill may cost, in seconds of wall clock, where saving is quick."""
SHARE = 20.0
"""Work between two saves takes at least so many times as long as the last save: large models write gigabytes."""


class StageState:
    """One file, replaced whole: tensors, with a JSON value, whose state it is, and the sha256 of all. Files of other
    keys are removed.

    It lies outside the stage's outs (DVC removes those before a run), and its key is a hash of everything
    that decides the stage's bytes, so that it is only taken up by the very same computation.
    """

    def __init__(self, folder: Path, name: str, key: str) -> None:
        self.path = folder / f"{name}-{key}" / "state.safetensors"
        self._saved = time.monotonic()
        self._cost = 0.0
        for other in folder.glob(f"{name}-*"):
            if other != self.path.parent:
                shutil.rmtree(other)

    @property
    def folder(self) -> Path:
        """Where the computation may keep more files of its own until `remove`."""
        return self.path.parent

    def due(self) -> bool:
        """Whether SAVE_SECONDS and SHARE times the last save's cost have passed since it, or since the beginning.

        At once when the stage was asked to end.
        """
        return TERMINATION.asked or time.monotonic() - self._saved >= max(SAVE_SECONDS, SHARE * self._cost)

    def save(self, tensors: "Mapping[str, torch.Tensor]", value: Any) -> None:
        """Replace the state by these tensors and this JSON value; a kill leaves the old or the new."""
        began = time.monotonic()
        with PHASES.phase("state"):
            write_tensors(tensors, {"state": self.folder.name, "value": value}, self.path)
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def load(self) -> "tuple[dict[str, torch.Tensor], Any] | None":
        """The saved tensors and value, or None where the stage begins from its inputs."""
        if not self.path.is_file():
            return None
        try:
            tensors, held = read_tensors(self.path)
            if held["state"] != self.folder.name:
                raise SealError(f"{self.path} is that of {held['state']}")
        except SealError as error:
            print(f"{error}: begin from the inputs", flush=True)
            self.remove()
            return None
        return tensors, held["value"]

    def remove(self) -> None:
        """Forget the state: the stage's artifact is complete."""
        if self.path.parent.is_dir():
            shutil.rmtree(self.path.parent)
