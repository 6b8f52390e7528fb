"""What two arms share is computed once: the second one copies, and only what is the same, byte for byte."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rank_e.config import parse
from rank_e.config.profiles import resolve
from rank_e.config.reading import read_text
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import manifest_sha256, read_artifact
from stages.runtime.locks import LOOK
from stages.runtime.phases import PHASES
from stages.runtime.sharing import once
from stages.runtime.stage import Stage, artifact_path

ROOT = Path(__file__).parents[2]
ARMS = ("frozen", "coevolved")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with the inputs of round 1's rollouts of both arms, as the current folder."""
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe", pure=True).load(resolve(ROOT / "profiles/tiny.yaml"))
    data["backbone"]["base"] = "base"
    write(data)
    Path("base").mkdir()
    Path("base/weights").write_text("w")
    Path("artifacts/code").mkdir(parents=True)
    Path("artifacts/code/rollouts.json").write_text("{}")
    put("prompts", "", 1)
    for arm in ARMS:
        put("policy", arm, 0)


def write(data: dict) -> None:
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(data, file)


def put(kind: str, arm: str, number: int, value: int = 0) -> None:
    with ArtifactWriter(artifact_path(kind, arm, 0, number), kind, seed=0, deterministic=True) as out:
        out.json("metrics", {"value": value})


def draw(arm: str, made: list[str], meanwhile: Callable[[], None] = lambda: None) -> Stage:
    """The stage rollouts of an arm; `made` grows where it computes."""
    text = read_text("params.yaml")
    stage = Stage("rollouts", parse(YAML(typ="safe", pure=True).load(text)), arm, 0, 1).begun(text)
    inputs = {
        "prompts": read_artifact(stage.path("prompts"), "prompts"),
        "policy": read_artifact(stage.path("policy", round=0), "policy"),
    }

    def make() -> None:
        meanwhile()
        made.append(arm)
        with stage.writer("rollouts", inputs={name: artifact.path for name, artifact in inputs.items()}) as out:
            out.json("metrics", {"drawn": len(made)})

    once(stage, inputs, make)
    return stage


def test_a_second_arm_with_the_same_inputs_and_params_copies() -> None:
    made: list[str] = []
    first, second = (draw(arm, made) for arm in ARMS)
    assert made == ["frozen"]
    one, other = (read_artifact(stage.path("rollouts"), "rollouts") for stage in (first, second))
    assert one.json("metrics") == other.json("metrics") and one.manifest["files"] == other.manifest["files"]
    assert other.manifest["cell"] == {"arm": "coevolved", "seed": 0, "round": 1}
    assert other.manifest["inputs"]["policy"]["path"] == "artifacts/coevolved/s0/r0/policy"
    assert not first.shared and second.shared["with"] == "frozen" and second.shared["seconds"] >= 0


def arm_samples_otherwise() -> None:
    data = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
    data["arms"]["coevolved"]["rollouts"] = {"temperature": 0.5}
    write(data)


def same_value_said_by_the_arm() -> None:
    data = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
    data["arms"]["coevolved"]["rollouts"] = {"temperature": data["rollouts"]["temperature"]}
    write(data)


def damage() -> None:
    (artifact_path("rollouts", "frozen", 0, 1) / "metrics.json").write_text('{\n  "drawn": 9\n}\n')


def free() -> None:
    """As `rank-e gc` leaves an artifact."""
    folder = artifact_path("rollouts", "frozen", 0, 1)
    (folder / "removed.json").write_text('{"files": ["metrics.json"]}')
    (folder / "metrics.json").unlink()


def remake() -> None:
    put("rollouts", "frozen", 1, value=3)


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        (arm_samples_otherwise, True),
        (same_value_said_by_the_arm, False),
        (lambda: put("policy", "coevolved", 0, value=1), True),
        (lambda: Path("base/weights").write_text("v"), True),
        (lambda: Path("artifacts/code/rollouts.json").write_text("{ }"), False),
        (damage, True),
        (free, True),
        (remake, True),
    ],
)
def test_only_what_is_the_same_is_copied(change: Callable[[], None], computed: bool) -> None:
    made: list[str] = []
    draw("frozen", made)
    change()
    draw("coevolved", made)
    assert (made == list(ARMS)) == computed
    assert read_artifact(artifact_path("rollouts", "coevolved", 0, 1), "rollouts").json("metrics")["drawn"] == len(made)


def test_an_arm_run_again_by_hand_computes() -> None:
    made: list[str] = []
    draw("frozen", made)
    draw("frozen", made)
    assert made == ["frozen", "frozen"]


def test_who_comes_while_it_is_computed_waits_says_so_and_copies(capsys: pytest.CaptureFixture[str]) -> None:
    made: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go.wait(20)

    first = threading.Thread(target=lambda: draw("frozen", made, wait))
    first.start()
    assert begun.wait(20)
    PHASES.begin()
    second = threading.Thread(target=lambda: draw("coevolved", made))
    second.start()
    second.join(LOOK + 0.3)
    assert second.is_alive() and not made
    assert "waiting for stage rollouts-frozen-s0-r1 (pid " in capsys.readouterr().err
    go.set()
    first.join(20)
    second.join(20)
    assert made == ["frozen"] and not second.is_alive()
    assert PHASES.seconds["wait"] >= LOOK  # which is no cost of the second's


def test_a_failure_leaves_nothing_to_copy() -> None:
    def fail() -> None:
        raise RuntimeError("no room")

    made: list[str] = []
    with pytest.raises(RuntimeError):
        draw("frozen", made, fail)
    draw("coevolved", made)
    assert made == ["coevolved"]
    note = next(path for path in Path(".rank-e/shared").iterdir() if path.suffix != ".lock")
    assert json.loads(note.read_text())["sha256"] == manifest_sha256(artifact_path("rollouts", "coevolved", 0, 1))
