"""The one loop of all updates: what it logs and writes, and that a killed stage ends in the same bytes."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor

from rank_e.config import parse
from rank_e.config.profiles import resolve
from rank_e.errors import RankEError
from rank_e.training.update import Update, UpdateState
from stages.runtime import state as runtime_state
from stages.runtime.artifacts import Artifact, read_artifact
from stages.runtime.stage import Stage, make_stage
from stages.runtime.state import StageState
from stages.runtime.termination import TERMINATION
from stages.runtime.training import by_file, by_name, train, write

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = YAML(typ="safe", pure=True).load(resolve(ROOT / "profiles/tiny.yaml"))


class Killed(BaseException):
    """What stops a stage here; like a signal, no handler of errors sees it."""


class Counting:
    """An update whose weight shows the order of its steps; `killed`: the step at which it dies."""

    def __init__(self, warmup: int = 0, killed: int | None = None) -> None:
        self.first_step, self.steps, self.steps_before, self.killed = -warmup, 4, 10, killed
        self.taken: list[int] = []
        self.weight = torch.ones(1)

    def step(self, index: int) -> dict[str, float]:
        if index == self.killed:
            raise Killed
        self.taken.append(index)
        self.weight = self.weight * 2 + index
        return {"loss": float(self.weight)}

    def state(self) -> UpdateState:
        return {"online": {"a/weight": self.weight.clone()}, "optimizer": {"count": torch.tensor(len(self.taken))}}

    def load(self, state: UpdateState) -> None:
        self.weight = state["online"]["a/weight"]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project's folder of its own, as the current one, where every step is saved."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime_state, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(runtime_state, "SHARE", 0.0)


def cell() -> Stage:
    return make_stage("sft", parse(TINY), seed=0)


def run(update: Counting, inputs: dict[str, Artifact] | None = None, **documents: Any) -> list[dict[str, float]]:
    stage = cell()
    checked: Update = update
    state = stage.state()
    log = train(stage, checked, state, state.load())
    write(stage, "policy", update.state(), log, inputs=inputs or {}, metrics={"gap": 0.5}, **documents)
    state.remove()
    return log


def test_the_log_has_a_row_a_step_numbered_over_all_rounds() -> None:
    update = Counting()
    assert run(update, progress={"updates": 14}) == [
        {"step": 10, "loss": 2.0},
        {"step": 11, "loss": 5.0},
        {"step": 12, "loss": 12.0},
        {"step": 13, "loss": 27.0},
    ]
    found = read_artifact("artifacts/sft/s0/policy", "policy")
    assert found.table("log").to_dict("list") == {"step": [10, 11, 12, 13], "loss": [2.0, 5.0, 12.0, 27.0]}
    assert found.json("metrics") == {"gap": 0.5, "loss": 11.5}
    assert found.json("progress") == {"updates": 14}
    assert found.tensors("online")["a/weight"].item() == 27.0
    events = [json.loads(line) for line in Path(".rank-e/events/s0-sft.jsonl").read_text().splitlines()]
    assert [(event["step"], event["total"], event["metrics"]["loss"]) for event in events] == [
        (10, 4, 2.0),
        (11, 4, 5.0),
        (12, 4, 12.0),
        (13, 4, 27.0),
    ]
    assert not list(Path(".rank-e/state").glob("*"))


def test_a_warm_up_comes_first_and_leaves_no_row() -> None:
    update = Counting(warmup=3)
    log = run(update)
    assert update.taken == [-3, -2, -1, 0, 1, 2, 3]
    assert [row["step"] for row in log] == [10, 11, 12, 13]
    assert log[0]["loss"] == ((1 * 2 - 3) * 2 - 2) * 4 - 2  # the warm-up has moved the weight


@pytest.mark.parametrize("killed", [-2, -1, 0, 1, 3])
def test_killed_and_run_again_it_ends_in_the_same_bytes_and_repeats_nothing(killed: int) -> None:
    run(Counting(warmup=2), progress={"updates": 14})
    folder = Path("artifacts/sft/s0/policy")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Killed):
        run(Counting(warmup=2, killed=killed))
    again = Counting(warmup=2)
    again.taken = list(range(-2, killed))  # the optimiser's count is not this test's
    run(again, progress={"updates": 14})
    assert again.taken == [-2, -1, 0, 1, 2, 3]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_state_keeps_what_is_asked_beside_the_update() -> None:
    stage = cell()
    images: dict[str, dict[str, Tensor]] = {"images": {"tokens": torch.arange(3)}}
    with pytest.raises(Killed):
        train(stage, Counting(killed=2), stage.state(), None, kept=images, value={"skipped": ["x"]})
    saved = stage.state().load()
    assert saved is not None
    tensors, value = saved
    assert torch.equal(by_file(tensors)["images"]["tokens"], torch.arange(3))
    assert value["skipped"] == ["x"] and value["next"] == 2 and len(value["log"]) == 2


def test_after_the_last_step_no_state_is_saved_unless_the_stage_was_asked_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The artifact itself comes next; a signal would end the stage before it."""
    state = cell().state()
    train(cell(), Counting(), state, None)
    saved = state.load()
    assert saved is not None and saved[1]["next"] == 3
    monkeypatch.setattr(TERMINATION, "_signal", signal.SIGTERM)
    monkeypatch.setattr(TERMINATION, "check", lambda: None)
    train(cell(), Counting(), state, None)
    saved = state.load()
    assert saved is not None and saved[1]["next"] == 4


def test_what_was_saved_before_the_first_step_is_no_state_of_the_update() -> None:
    stage = cell()
    state = stage.state()
    state.save(by_name({"images": {"tokens": torch.arange(3)}}), {"skipped": []})
    update = Counting(warmup=1)
    train(stage, update, state, state.load())
    assert update.taken == [-1, 0, 1, 2, 3]


def test_weights_that_are_handed_on_have_an_empty_log_and_no_means() -> None:
    stage = cell()
    write(stage, "policy", {"online": {"w": torch.ones(2)}}, [], inputs={}, metrics={}, progress={"updates": 0})
    found = read_artifact("artifacts/sft/s0/policy", "policy")
    assert found.table("log").columns.tolist() == ["step"] and found.table("log").empty
    assert found.table("log")["step"].dtype == "int64" and found.json("metrics") == {}


@pytest.mark.parametrize("place", [5, 60, -1, None], ids=["length", "header", "weights", "cut off"])
def test_a_damaged_state_is_discarded_in_one_line(place: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        run(Counting(killed=2))
    (file,) = Path(".rank-e/state").rglob("state.safetensors")
    (file.parent / "stream").mkdir()  # what the stage keeps beside it goes with it
    data = bytearray(file.read_bytes())
    if place is not None:
        data[place] ^= 1
    file.write_bytes(data if place is not None else data[:-1])
    capsys.readouterr()
    again = Counting()
    assert run(again) == run(Counting())
    assert again.taken == [0, 1, 2, 3]
    said = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert said == [f"{file} is damaged: begin from the inputs"]


def test_a_state_of_another_cell_is_discarded_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, of the same form, and not this computation's."""
    other = StageState(Path(".rank-e/state"), "policy-frozen-s0-r1", "0123")
    update = Counting()
    update.step(0)
    other.save(by_name(update.state()), {"log": [{"step": 0}], "next": 2})
    own = cell().state().path
    own.parent.mkdir(parents=True)
    shutil.copyfile(other.path, own)
    again = Counting()
    assert run(again) == run(Counting())
    assert again.taken == [0, 1, 2, 3]
    said = [line for line in capsys.readouterr().out.splitlines() if "begin" in line]
    assert said == [f"{own} is that of policy-frozen-s0-r1-0123: begin from the inputs"]


def test_a_metric_that_is_not_finite_ends_the_stage_by_name() -> None:
    class Diverging(Counting):
        def step(self, index: int) -> dict[str, float]:
            return super().step(index) | {"kl": float("nan") if index == 2 else 0.0}

    with pytest.raises(RankEError, match=r"^sft s0, step 2: kl = nan; give a lower learning rate$"):
        run(Diverging())
    found = cell().state().load()
    assert found is not None and found[1]["next"] == 2


def test_names_of_tensors_come_back_by_file() -> None:
    files = {"online": {"a/b": torch.ones(1), "c": torch.ones(2)}, "ema": {"c": torch.zeros(1)}}
    flat = by_name(files)
    assert flat.keys() == {"online/a/b", "online/c", "ema/c"}
    back = by_file(flat)
    assert back.keys() == files.keys()
    assert all(torch.equal(back[file][name], x) for file, tensors in files.items() for name, x in tensors.items())
