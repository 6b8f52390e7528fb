"""What DVC will record of a stage is what the stage used: a change while it works ends it in one line."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rank_e.config import load
from rank_e.config.profiles import resolve
from rank_e.config.reading import read_text
from rank_e.io.files import sha256_of
from stages.runtime import recorded, stage
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import read_artifact
from stages.runtime.recorded import ChangedError, Recorded
from stages.runtime.stage import Stage, artifact_path, main, make_stage

ROOT = Path(__file__).parents[2]
CELL = {"arm": "coevolved", "seed": 0, "round": 1}
WORDS = ["--arm", "coevolved", "--seed", "0", "--round", "1"]
Change = Callable[[], None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data, weights and the inputs of a decoder stage, as the current folder."""
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe", pure=True).load(resolve(ROOT / "profiles/tiny.yaml"))
    data["data"]["training"] = {"kind": "mine:dataset", "folder": "data"}
    data["weights"] = {"training": "weights", "evaluation": "weights"}
    data["backbone"]["base"] = "base"
    data["arms"]["coevolved"]["decoder"] = {"steps": 3}
    write(data)
    for path, text in (
        ("data/a/images.tar", "images"),
        ("data/list.txt", "a cat"),
        ("weights/clip", "w"),
        ("base/p", "p"),
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    for kind, number in (("prompts", 1), ("rollouts", 1), ("ranking", 1), ("decoder", 0)):
        artifact(kind, number)
    Path("artifacts/code").mkdir()
    Path("mine.py").write_text("def dataset(): ...")
    Path("artifacts/code/decoder.json").write_text(json.dumps({"mine.py": sha256_of("mine.py")}))
    monkeypatch.setattr(stage, "record_usage", lambda *_: None)
    monkeypatch.setattr(stage, "configure_torch", lambda _: None)
    monkeypatch.setattr(stage, "follow_parent", lambda: None)
    return tmp_path


def write(data: dict) -> None:
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(data, file)


def artifact(kind: str, number: int, value: int = 0) -> None:
    path = artifact_path(kind, "coevolved", 0, number)
    with ArtifactWriter(path, kind, seed=0, deterministic=True) as out:
        out.json("metrics", {"value": value})


def edit(section: str, key: str, value: object) -> Change:
    def change() -> None:
        data = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
        target = data
        for part in section.split("."):
            target = target[part]
        target[key] = value
        write(data)

    return change


def put(path: str, text: str) -> Change:
    return lambda: Path(path).write_text(text) and None


def run_decoder(change: Change) -> None:
    """The stage decoder, in whose middle something happens."""

    def run(stage: Stage) -> None:
        with stage.writer("decoder", inputs={"ranking": stage.path("ranking")}) as out:
            change()
            out.json("metrics", {})

    main("decoder", run, WORDS)


LISTS = Path("data/list.txt")


def replace_keeping_times() -> None:
    """As `rsync --times` or `cp --preserve` put another file in its place."""
    status = LISTS.stat()
    Path("new").write_text("a dog")
    os.utime("new", ns=(status.st_atime_ns, status.st_mtime_ns))
    Path("new").replace(LISTS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit("decoder", "learning_rate", 0.5), r"params\.yaml: decoder\.learning_rate = 0\.5, was 0\.0002"),
        (edit("runtime", "threads", 2), r"params\.yaml: runtime\.threads = 2, was 1"),
        (edit("arms.coevolved.decoder", "steps", 4), r"params\.yaml: arms\.coevolved\.decoder\.steps = 4, was 3"),
        (edit("arms.coevolved.decoder", "lecam", 0.0), r"arms\.coevolved\.decoder\.lecam = 0\.0, was not there"),
        (put("data/a/images.tar", "imageS"), r"data/a/images\.tar was written"),
        (put("data/list.txt", "a cat, a dog"), r"data/list\.txt was written"),
        (replace_keeping_times, r"data/list\.txt was written"),
        (put("data/b.tar", "more"), r"data/b\.tar is new"),
        (lambda: LISTS.unlink(), r"data/list\.txt is gone"),
        (put("weights/clip", "v"), r"weights/clip was written"),
        (put("base/p", "q"), r"base/p was written"),
        (lambda: artifact("ranking", 1, 1), r"artifacts/coevolved/s0/r1/ranking/manifest\.json was written"),
        (lambda: artifact("prompts", 1, 1), r"artifacts/prompts/s0/r1/manifest\.json was written"),
        (put("mine.py", "def dataset(): return 1"), r"mine\.py was edited"),
    ],
)
def test_what_changes_while_a_stage_works_is_named_and_nothing_appears(
    project: Path, change: Change, named: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run_decoder(change)
    said = str(end.value.code)
    assert re.fullmatch(rf"decoder: decoder coevolved s0 r1: changed while it worked: .*{named}; its artifact .*", said)
    assert not artifact_path("decoder", **CELL).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda: None,
        edit("policy", "learning_rate", 0.5),  # another stage's
        edit("arms.frozen.decoder", "steps", 4),  # another arm's
        lambda: edit("guards", "kl", 3.0)(),  # decides no bytes
        lambda: Path("params.yaml").write_text(Path("params.yaml").read_text() + "# a note\n") and None,
        lambda: os.utime(LISTS),
        lambda: artifact("ranking", 1),  # the very same, as DVC links it anew
        put("data/__pycache__/a.pyc", "compiled"),
        put("data/new.tmp-1", "half"),
        lambda: artifact("rollouts", 2),
    ],
)
def test_what_is_not_read_or_still_the_same_may_change(project: Path, change: Change) -> None:
    Path("data/__pycache__").mkdir()
    run_decoder(change)
    manifest = read_artifact(artifact_path("decoder", **CELL), "decoder").manifest
    assert manifest["params"]["decoder"]["steps"] == 3  # the arm's own


def test_a_large_file_is_known_by_its_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "CHEAP", 5)  # the list, and no tar
    run_decoder(lambda: os.utime(LISTS))
    with pytest.raises(SystemExit, match=r"data/a/images\.tar was written"):
        run_decoder(lambda: os.utime("data/a/images.tar"))


def test_code_that_is_not_what_was_listed_does_not_begin(project: Path) -> None:
    Path("mine.py").write_text("edited")
    with pytest.raises(
        SystemExit, match=r"^decoder: .*mine\.py edited after the stage `code` had listed it: `dvc repro`"
    ):
        run_decoder(lambda: None)
    Path("artifacts/code/decoder.json").write_text("{")
    with pytest.raises(SystemExit, match=r"artifacts/code/decoder\.json is damaged: run `rank-e repair`"):
        run_decoder(lambda: None)


def test_a_pipe_in_a_data_folder_is_not_read(project: Path) -> None:
    os.mkfifo("data/pipe")
    run_decoder(lambda: None)


def test_a_state_of_other_data_is_not_taken_up(project: Path) -> None:
    def path() -> Path:
        return make_stage("decoder", load(), **CELL).begun(read_text("params.yaml")).state().path

    first = path()
    assert path() == first
    os.utime(LISTS)
    assert path() == first
    LISTS.write_text("a dog")
    assert path() != first


def test_an_artifact_says_the_params_of_its_arm(project: Path) -> None:
    params = load()
    used = make_stage("decoder", params, **CELL).used
    merged = params.arm("coevolved").model_dump(mode="json")
    assert used.keys() == {"backbone", "data", "weights", "runtime", "decoder", "ranking"}
    assert used["decoder"] == merged["decoder"] and used["decoder"]["steps"] == 3
    assert used["ranking"] == {"rewards": merged["ranking"]["rewards"]}
    assert used["data"].keys() == {"training"} and used["weights"].keys() == {"training"}
    frozen = make_stage("decoder", params, arm="frozen", seed=0, round=1).used
    assert frozen["decoder"] == params.arm("frozen").model_dump(mode="json")["decoder"]


def test_many_changes_are_one_line(project: Path) -> None:
    seen = Recorded("a stage", read_text("params.yaml"), [], [Path("data")], Path("none.json"))
    for number in range(8):
        Path(f"data/{number}.tar").write_text("new")
    with pytest.raises(ChangedError, match=r"data/0\.tar is new, .* and 3 more; its artifact is not") as caught:
        seen.check()
    assert len(str(caught.value).splitlines()) == 1
