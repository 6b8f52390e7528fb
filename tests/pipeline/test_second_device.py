"""What a GPU would refuse or wait for, found without one: every stage of tiny official pipelines on a second device.

Each run is a process of its own: torch takes in a device once, before the first backward pass.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.runtime.stage import ARGUMENTS

ROOT = Path(__file__).parents[2]
TRAFFIC: dict[str, dict[str, str]] = json.loads((ROOT / "tests/helpers/device_traffic.json").read_text())
KINDS = ("llamagen", "janus")
Seen = dict[str, Any]


def checked(module: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.helpers.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_second_device_sees_what_it_should() -> None:
    checked("second_device_checks")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """What was seen of each pipeline: LlamaGen with PatchGAN, LPIPS, CLIP and aesthetic, Janus with the rest."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        checked("on_second_device", kind, str(folder))
        found[kind] = json.loads((folder / "seen.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_stage_calls_what_cuda_cannot_do_deterministically(seen: dict[str, Seen], kind: str) -> None:
    assert [event for event in seen[kind]["events"] if event[1] == "forbidden"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_token_loop_neither_copies_nor_waits(seen: dict[str, Seen], kind: str) -> None:
    assert seen[kind]["steps"] > 100
    assert [event for event in seen[kind]["events"] if event[0] == "sampling"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_that_fills_a_gpu_can_halve_what_it_holds(seen: dict[str, Seen], kind: str) -> None:
    assert {*ARGUMENTS} - {*seen[kind]["halving"]} == {"code", "prompts", "start", "report"}


@pytest.mark.slow
def test_training_steps_copy_and_wait_in_known_places_alone(seen: dict[str, Seen]) -> None:
    events = [event for kind in KINDS for event in seen[kind]["events"]]
    loops = {"PolicyUpdate", "DecoderUpdate", "SftUpdate"}
    assert {event[0] for event in events} >= loops
    found = {(kind, place) for loop, kind, _, place, _ in events if loop in loops}
    known = {(kind, place) for kind in ("upload", "download", "wait") for place in TRAFFIC[kind]}
    assert found - known == set(), "mend it, or say in tests/helpers/device_traffic.json why it must be"
    assert known - found == set(), "mended: take it out of tests/helpers/device_traffic.json"
