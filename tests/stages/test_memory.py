"""A GPU without enough memory: the stage goes on with half as many samples at once, from its last saved state."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from rank_e.config import parse
from rank_e.config.profiles import resolve
from rank_e.training.update import UpdateState
from stages.runtime import state as runtime_state
from stages.runtime.artifacts import read_artifact
from stages.runtime.memory import Memory
from stages.runtime.stage import Stage, make_stage
from stages.runtime.training import train, write

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = YAML(typ="safe", pure=True).load(resolve(ROOT / "profiles/tiny.yaml"))


class Adding:
    """An update of four steps; from step 2 on it needs memory for `microbatch` samples, and `room` are there."""

    first_step, steps, steps_before = 0, 4, 0

    def __init__(self, microbatch: int, room: int) -> None:
        self.microbatch, self.room = microbatch, room
        self.taken: list[int] = []
        self.weight = torch.zeros(1)

    def step(self, index: int) -> dict[str, float]:
        self.taken.append(index)
        self.weight = self.weight + index + 1
        if index >= 2 and self.microbatch > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return {"loss": float(self.weight)}

    def state(self) -> UpdateState:
        return {"online": {"weight": self.weight.clone()}}

    def load(self, state: UpdateState) -> None:
        self.weight = state["online"]["weight"]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime_state, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(runtime_state, "SHARE", 0.0)


def run(room: int) -> tuple[Stage, list[Adding]]:
    """Train in a stage whose params ask for microbatches of 16."""
    stage, tries = make_stage("sft", parse(TINY), seed=0), []
    params = stage.params.sft.model_copy(update={"microbatch_size": 16})

    def body() -> None:
        update = Adding(stage.memory.microbatched(params).microbatch_size, room)
        tries.append(update)
        state = stage.state()
        log = train(stage, update, state, state.load())
        write(stage, "policy", update.state(), log, inputs={}, metrics={}, progress={"updates": len(log)})
        state.remove()

    stage.memory.run(stage.title, body)
    return stage, tries


def test_half_as_many_at_once_from_the_last_saved_step(capsys: pytest.CaptureFixture[str]) -> None:
    stage, tries = run(room=4)
    assert [(update.microbatch, update.taken) for update in tries] == [(16, [0, 1, 2]), (8, [2]), (4, [2, 3])]
    found = read_artifact(stage.path("sft"), "policy")
    assert found.tensors("online")["weight"].item() == 1 + 2 + 3 + 4  # no step was taken twice
    assert found.table("log")["loss"].tolist() == [1, 3, 6, 10]
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "memory" in line] == [
        "sft s0: out of GPU memory with 16 samples at once; again with 8",
        "sft s0: out of GPU memory with 8 samples at once; again with 4",
    ]


@pytest.mark.parametrize(("room", "same"), [(16, True), (8, False)])
def test_an_artifact_says_when_its_bytes_depended_on_the_memory(room: int, same: bool) -> None:
    stage, _ = run(room)
    assert stage.params.runtime.deterministic
    manifest = json.loads((stage.path("sft") / "manifest.json").read_text())
    assert manifest["deterministic"] is same


def test_what_does_not_fit_one_by_one_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(room=0)


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def body() -> None:
        calls.append(memory.at_once(8))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    memory = Memory()
    with pytest.raises(RuntimeError, match="shapes"):
        memory.run("policy", body)
    assert calls == [8]
