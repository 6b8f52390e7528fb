"""What stages share: arguments, one-line errors, life tied to the parent, locks, state, progress, events."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rank_e.config import ConfigError, load
from rank_e.errors import RankEError
from stages import code
from stages.runtime import progress
from stages.runtime import stage as stage_module
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.locks import Hold, Holder, LockedError
from stages.runtime.progress import EventLog, clock, track
from stages.runtime.stage import ARGUMENTS, artifact_path, make_stage, parse_arguments
from stages.runtime.state import StageState
from stages.runtime.usage import record_usage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder with the default params of three seeds, as the current one."""
    text = (ROOT / "profiles/shapes.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("seeds: [0]", "seeds: [0, 1, 2]"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stage_process(project: Path, body: str) -> subprocess.Popen[str]:
    """Start `body` as the run function of stage policy."""
    (project / "entry.py").write_text(
        f"from stages.runtime.stage import main\ndef run(stage):\n    {body}\nmain('policy', run)\n"
    )
    command = [sys.executable, "entry.py", "--arm", "frozen", "--seed", "1", "--round", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=project, stdout=pipe, stderr=pipe, text=True, env=environment)


def test_a_stage_knows_its_cell(project: Path) -> None:
    given = parse_arguments("policy", ["--arm", "frozen", "--seed", "1", "--round", "2"])
    stage = make_stage("policy", load(), **given)
    assert stage.path("rollouts") == Path("artifacts/frozen/s1/r2/rollouts")
    assert stage.path("policy", round=0) == Path("artifacts/frozen/s1/r0/policy")
    assert stage.path("evaluation", arm="coevolved") == Path("artifacts/coevolved/s1/r2/evaluation")
    assert stage.path("prompts") == Path("artifacts/prompts/s1/r2")
    assert stage.path("reference") == Path("artifacts/reference")
    assert stage.path("baseline") == Path("artifacts/base/evaluation")
    assert stage.path("sft") == Path("artifacts/sft/s1/policy")
    assert stage.path("sft_evaluation") == Path("artifacts/sft/s1/evaluation")
    assert stage.path("factorial") == Path("artifacts/frozen/s1/r2/factorial")
    assert (stage.key, stage.title) == ("policy-frozen-s1-r2", "policy frozen s1 r2")
    assert stage.arm_params.decoder.train is False
    assert make_stage("reference", load()).seed == load().evaluation.seed
    with pytest.raises(RankEError, match="no artifact of kind 'weights'"):
        artifact_path("weights")


@pytest.mark.parametrize(
    ("arm", "seed", "round_id", "message"),
    [
        ("melted", 0, 1, "arm 'melted' is not in params.yaml: it has frozen, coevolved"),
        ("frozen", 7, 1, r"seed 7 is not in params.yaml: seeds = \[0, 1, 2\]"),
        ("frozen", 0, 10, "round 10 is not in params.yaml: it has 1 to 9"),
    ],
)
def test_a_cell_outside_the_grid_is_an_error(project: Path, arm: str, seed: int, round_id: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_stage("policy", load(), arm=arm, seed=seed, round=round_id)


def test_each_stage_takes_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for name, wanted in ARGUMENTS.items():
        given = [word for key in wanted for word in (f"--{key}", "1")]
        assert set(parse_arguments(name, given)) == set(wanted)
    with pytest.raises(SystemExit):
        parse_arguments("prompts", ["--seed", "0", "--round", "1", "--arm", "frozen"])
    with pytest.raises(SystemExit):
        parse_arguments("policy", ["--arm", "frozen", "--seed", "0"])
    assert "--round" in capsys.readouterr().err


def test_wrong_params_stop_a_stage_before_torch_with_one_line_each(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    text = re.sub(r"per_round: \d+", "per_round: none", text).replace("clip_epsilon: 0.2", "clip_epsilon: 2")
    (project / "params.yaml").write_text(text)
    (project / "torch.py").write_text("raise SystemExit('torch was imported')")
    process = stage_process(project, "pass")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines() == [
        'policy: params.yaml: prompts.per_round = "none": must be a whole number in [1, 10000000]',
        "policy: params.yaml: policy.clip_epsilon = 2: must be a number in (0, 1]",
    ]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_stage_runs_on_its_threads_with_the_algorithms_that_are_asked_for(
    project: Path, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)  # which another test may have set
    text = (project / "params.yaml").read_text()
    asked = f"deterministic: {str(deterministic).lower()}"
    (project / "params.yaml").write_text(text.replace("deterministic: true", asked))
    facts = (
        "torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), 'CUBLAS_WORKSPACE_CONFIG' in environ"
    )
    cuda = "b.cudnn.benchmark, b.cudnn.allow_tf32, b.cuda.matmul.allow_tf32, str(stage.device), stage.title"
    process = stage_process(
        project, f"import torch; from os import environ; b = torch.backends; print({facts}, {cuda})"
    )
    output, errors = process.communicate(timeout=60)
    fast = not deterministic
    wanted = f"1 {deterministic} {deterministic} {fast} {fast} False cpu policy frozen s1 r2\n"
    assert (output, process.returncode) == (wanted, 0), errors


def test_a_stage_dies_with_its_parent(project: Path) -> None:
    # A parent in between, as dvc is: killed without a chance to pass the signal on.
    (project / "entry.py").write_text(
        "import time\nfrom stages.runtime.process import follow_parent\nfollow_parent()\n"
        "print('ready', flush=True)\ntime.sleep(20)\n"
    )
    (project / "parent.py").write_text(
        "import subprocess, sys\nsubprocess.Popen([sys.executable, 'entry.py']).wait()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "parent.py"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        killed = time.monotonic()
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == ""  # ends when the child, which holds the pipe, has ended
        assert time.monotonic() - killed < 10


def test_a_second_writer_waits_and_then_names_the_lock_and_its_holder(tmp_path: Path) -> None:
    lock, refusal = tmp_path / "locks" / "policy.lock", "{holder} holds {path}"

    def hold(patience: float) -> Hold:
        return Hold(lock, patience, Holder(os.getpid(), "stage policy", ""), refusal)

    with hold(0), pytest.raises(LockedError, match=rf"^stage policy \(pid {os.getpid()}\) holds {lock}$"), hold(0.3):
        pass
    with hold(0):
        pass


def test_state_is_taken_up_only_by_the_same_computation(project: Path) -> None:
    def artifact(value: int) -> Path:
        with ArtifactWriter(project / "input", "prompts", seed=0, deterministic=True) as out:
            out.json("metrics", {"value": value})
        return project / "input"

    params = load()
    stage = make_stage("policy", params, arm="frozen", seed=0, round=1)
    state = stage.state(artifact(1))
    assert state.load() is None
    assert not state.due()
    state.save({"weight": torch.tensor([1.0, 2.0])}, {"step": 3})
    state.save({"weight": torch.tensor([3.0, 4.0])}, {"step": 4})

    loaded = stage.state(artifact(1)).load()
    assert loaded is not None
    assert loaded[0]["weight"].tolist() == [3.0, 4.0] and loaded[1] == {"step": 4}
    # Other cells neither see it nor remove it; a longer run may take it up.
    assert make_stage("policy", params, arm="frozen", seed=0, round=2).state(artifact(1)).load() is None
    assert make_stage("policy", params, arm="coevolved", seed=0, round=1).state(artifact(1)).load() is None
    more = params.model_copy(update={"seeds": [0, 1, 2, 3]})
    assert make_stage("policy", more, arm="frozen", seed=0, round=1).state(artifact(1)).load() is not None
    # Another params value, or another input, is another computation: the old state goes away.
    slower = params.model_copy(update={"policy": params.policy.model_copy(update={"epochs": 2})})
    assert make_stage("policy", slower, arm="frozen", seed=0, round=1).state(artifact(1)).load() is None
    assert stage.state(artifact(1)).load() is None
    state.save({"weight": torch.zeros(1)}, {})
    assert stage.state(artifact(2)).load() is None
    assert list((project / ".rank-e/state").iterdir()) == []


@pytest.fixture
def source(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with its own code, a user's module among it that the params name as a reward."""
    for name in ("rank_e", "stages"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "mine.py").write_text("def sharp(folder, device): ...\n")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["ranking"]["rewards"]["sharp"] = {"kind": "mine:sharp", "weight": 1.0, "normalise": "none"}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(stage_module, "SOURCE", project)
    return project


@pytest.mark.parametrize("listed", [True, False], ids=["as the stage code wrote it", "without its list"])
@pytest.mark.parametrize(
    ("name", "path", "kept"),
    [
        ("policy", "rank_e/training/policy_update.py", False),
        ("policy", "stages/runtime/state.py", False),
        ("policy", "rank_e/training/decoder_update.py", True),
        ("policy", "stages/evaluation.py", True),
        ("policy", "rank_e/config/messages.py", True),
        ("policy", "mine.py", True),
        ("decoder", "mine.py", False),
    ],
)
def test_state_outlives_an_edit_of_what_is_not_its_stages_code(
    source: Path, name: str, path: str, kept: bool, listed: bool
) -> None:
    if listed:
        (source / "dvc.yaml").write_text("stages: {code: {deps: [rank_e, stages, mine.py]}}")
        code.run(make_stage("code", load()))
        assert ("mine.py" in json.loads((source / f"artifacts/code/{name}.json").read_text())) == (name == "decoder")

    def state() -> StageState:
        return make_stage(name, load(), arm="coevolved", seed=0, round=1).state()

    state().save({"weight": torch.zeros(1)}, {})
    assert state().load() is not None
    (source / path).write_text((source / path).read_text() + "# edited\n")
    assert (state().load() is not None) == kept


def test_state_is_removed_when_the_stage_is_done(project: Path) -> None:
    state = make_stage("policy", load(), arm="frozen", seed=0, round=1).state()
    state.remove()
    state.save({"weight": torch.zeros(1)}, [])
    (state.path.parent / ".state.safetensors.tmp-new").write_text("cut off")
    state.remove()
    assert state.load() is None and list((project / ".rank-e/state").iterdir()) == []


def test_events_start_empty_and_hold_a_line_a_step(project: Path) -> None:
    stage = make_stage("policy", load(), arm="frozen", seed=1, round=2)
    path = project / ".rank-e/events/frozen-s1-r2-policy.jsonl"
    EventLog(path).log(9, 9, {"loss": 9.0})
    for step in (0, 1):
        stage.events.log(step, 2, {"loss": 0.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["total"], line["metrics"]) for line in lines] == [
        (0, 2, {"loss": 0.5}),
        (1, 2, {"loss": 0.5}),
    ]
    assert abs(lines[0]["time"] - time.time()) < 60


def test_progress_prints_few_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    seen = []
    for step in track(range(3, 23), "policy frozen s0 r1"):
        seen.append(step)
        now += 1.5
    assert seen == list(range(3, 23))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "policy frozen s0 r1 4/20 20 % ETA 0:24"
    assert lines[-1] == "policy frozen s0 r1 20/20 100 % in 0:30"
    assert len(lines) == 5
    assert list(track([], "nothing to do")) == [] and capsys.readouterr().err == ""
    assert (clock(0.2), clock(61)) == ("0:01", "1:01")


def test_a_stage_writes_down_what_it_used(project: Path) -> None:
    stage = make_stage("rollouts", load(ROOT / "params.yaml"), arm="frozen", seed=0, round=1)
    block = np.ones(60_000_000)  # 480 MB
    record_usage(project / ".rank-e" / "usage" / f"{stage.key}.json", time.monotonic() - 2.0, project, {})
    usage = json.loads((project / ".rank-e" / "usage" / "rollouts-frozen-s0-r1.json").read_text())
    assert 2.0 <= usage["seconds"] < 3.0
    assert usage["peak_rss_mb"] > block.nbytes / 1e6
    assert abs(usage["ended"] - time.time()) < 60
    assert usage.keys() == {"seconds", "peak_rss_mb", "phases", "ended", "revision"}  # no GPU was used


def test_a_slow_save_makes_the_next_one_wait_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("stages.runtime.state.time.monotonic", lambda: clock[0])
    # The file and its folder are waited for: 3 s a save.
    monkeypatch.setattr("rank_e.io.files._sync", lambda path: clock.__setitem__(0, clock[0] + 1.5))
    state = StageState(tmp_path, "policy", "key")
    clock[0] = 9.0
    assert not state.due()
    clock[0] = 10.0
    assert state.due()
    state.save({"weight": torch.zeros(1)}, {})
    clock[0] = 13.0 + 59.0
    assert not state.due()
    clock[0] = 13.0 + 60.0
    assert state.due()
