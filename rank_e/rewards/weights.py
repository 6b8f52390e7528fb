"""Published weight files of rewards and evaluators, read safely into networks that were built without weights."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rank_e.io.archives import is_archive
from rank_e.io.checkpoints import CheckpointError, check_finite, check_shapes, check_whole, read_tensors, shapes_of
from rank_e.rewards.base import RewardError

# Entries of OpenAI's CLIP archives that describe the network and are no weights of it.
ARCHIVE_NOTES = ("input_resolution", "context_length", "vocab_size")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, on the CPU, floating ones in float32.

    Reads what `checkpoints.read_tensors` reads, and OpenAI's TorchScript archives. Raises RewardError naming the file.
    """
    path = Path(path)
    try:
        tensors = _archived(path) if is_torchscript(path) else read_tensors(path)
    except CheckpointError as error:
        raise RewardError(str(error)) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a program and its weights) rather than a checkpoint of tensors."""
    if not path.is_file() or not is_archive(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # damaged: its reader says so
        return False


def read_torchscript(path: Path) -> torch.jit.ScriptModule:
    """A TorchScript module on the CPU, in eval mode. Raises RewardError naming a damaged file.

    An archive is a program: loading it may run parts of it, in TorchScript's interpreter, which reaches torch's
    operators but no Python. Give only files whose origin you trust, such as the published ones.
    """
    try:
        check_whole(path)
        return torch.jit.load(str(path), map_location="cpu").eval()
    except CheckpointError as error:
        raise RewardError(str(error)) from None
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0][:160]
        raise RewardError(f"{path} is a damaged TorchScript archive ({line}); download it again") from None


def _archived(path: Path) -> dict[str, Tensor]:
    state = read_torchscript(path).state_dict()
    return {key: value for key, value in state.items() if key not in ARCHIVE_NOTES}


def check_weights(what: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise RewardError naming the first of `given` that are missing, unexpected, of another shape or not finite."""
    try:
        check_shapes(given, shapes_of(wanted), what)
        check_finite(given, what)
    except CheckpointError as error:
        raise RewardError(str(error)) from error


def assign(what: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` into `module`, built on the meta device, in place of its parameters; frozen, in eval mode.

    Buffers that no state dict holds stay on the meta device: the caller makes them. Raises RewardError that counts
    and names the keys that do not fit or are not finite.
    """
    check_weights(what, tensors, module.state_dict())
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    module.eval().requires_grad_(False)
