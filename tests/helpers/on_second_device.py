"""`python -m tests.helpers.on_second_device KIND FOLDER`: every stage of a tiny official project on a second device.

Writes FOLDER/seen.json: {"steps": calls of a policy's step, "events": [[loop, kind, operation, place, count], ...]}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.helpers.second_device import SecondDevice

LISTED = json.loads(Path(__file__).with_name("nondeterministic_cuda.json").read_text(encoding="utf-8"))["operations"]
AFTER = "after a step"  # of sampling: part of the loop if another step follows


def nondeterministic(func: Any, arguments: dict[str, Any]) -> bool:
    """Whether PyTorch has no deterministic CUDA implementation of this call."""
    if func._schema.name not in LISTED:
        return False
    for name, wanted in (LISTED[func._schema.name] or {}).items():
        value = arguments.get(name)
        if wanted == "floating":
            dtype = arguments.get("dtype") or value.dtype
            holds = dtype.is_floating_point or dtype.is_complex
        else:
            holds = value is not None if wanted == "given" else value == wanted
        if not holds:
            return False
    return True


def watch_training(device: SecondDevice, update: Any) -> None:
    """Events within the steps of a class of updates belong to a loop of its name."""
    step = update.step

    def watched(self: Any, index: int) -> Any:
        with device.inside(update.__name__):
            return step(self, index)

    update.step = watched


def watch_sampling(device: SecondDevice, policy: Any, steps: list[int]) -> None:
    """From the entry of a policy's first step of a batch to the end of its last, events belong to the loop sampling."""
    step = policy.step

    def beginning(method: Any) -> Any:
        def watched(self: Any, *given: Any, **options: Any) -> Any:
            device.loop = ""  # a batch begins: what followed the last step of the one before was no part of its loop
            device.rename(AFTER, "")
            return method(self, *given, **options)

        return watched

    def watched_step(self: Any, *given: Any, **options: Any) -> Any:
        device.rename(AFTER, "sampling")
        with device.inside("sampling"):
            found = step(self, *given, **options)
        device.loop = AFTER
        steps.append(1)
        return found

    policy.cache, policy.refill, policy.step = beginning(policy.cache), beginning(policy.refill), watched_step


def main(kind: str, folder: Path) -> None:
    """Write the project into `folder` and run it there."""
    device = SecondDevice(nondeterministic)  # before anything computes
    from rank_e.backbones.janus.policy import JanusPolicy
    from rank_e.backbones.llamagen.policy import Policy
    from rank_e.config import load
    from rank_e.evaluation import networks
    from rank_e.training.decoder_update import DecoderUpdate
    from rank_e.training.policy_update import PolicyUpdate
    from rank_e.training.sft_update import SftUpdate
    from stages.runtime.algorithms import configure_torch
    from stages.runtime.stage import Stage
    from tests.helpers.in_process import cells, run_stages, write_project
    from tests.helpers.official import Inception

    write_project(kind, folder, {"runtime": {"fast": False}})  # the compiler knows no such device
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # a user's own module lies there
    steps: list[int] = []
    for update in (PolicyUpdate, DecoderUpdate, SftUpdate):
        watch_training(device, update)
    for policy in (Policy, JanusPolicy):
        watch_sampling(device, policy, steps)
    Stage.device = property(lambda _: device.device)  # type: ignore[assignment,method-assign]
    # TorchScript knows no second device: the module that the archive was made from stands in.
    networks.read_torchscript = lambda _: Inception().requires_grad_(False).eval()  # type: ignore[assignment]
    params = load()
    configure_torch(params)
    with device:
        halving = run_stages(params, cells())
    events = [[*event, count] for event, count in sorted(device.events.items())]
    (folder / "seen.json").write_text(json.dumps({"steps": len(steps), "events": events, "halving": sorted(halving)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
