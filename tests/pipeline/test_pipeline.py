"""The real pipeline at its smallest: every stage through `dvc repro`, another round, a kill, a changed parameter."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rank_e.config import load
from rank_e.config.profiles import resolve
from rank_e.shapes.backbone import ShapesBackbone
from stages import rollouts
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import make_stage
from stages.runtime.warm import warm_stages
from tests.helpers.project import ROOT, dvc, environment

CPU = torch.device("cpu")
pytestmark = pytest.mark.slow

COPIED = ("rank_e", "stages", "pipeline", "assets", "profiles", "dvc.yaml", ".dvcignore")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the tiny profile has run, in one warm process; what follows runs without one."""
    folder = tmp_path_factory.mktemp("run")
    for name in COPIED:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder / name)
    (folder / "params.yaml").write_text(resolve(ROOT / "profiles/tiny.yaml"))
    dvc(folder, "init", "--no-scm", "--quiet")
    dvc(folder, "config", "core.analytics", "false")
    with warm_stages(folder):
        dvc(folder, "repro")
    return folder


def fingerprints(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def change(workspace: Path, **sections: dict) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    for name, values in sections.items():
        if isinstance(values, dict):
            params[name] |= values
        else:
            params[name] = values
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


def test_everything_runs_and_only_what_should_move_moves(workspace: Path) -> None:
    backbone = ShapesBackbone(workspace / "assets" / "shapes", CPU, torch.float32)
    policy, decoder = backbone.policy_weights(), backbone.decoder_weights()
    last = {arm: workspace / "artifacts" / arm / "s0" / "r2" for arm in ("frozen", "coevolved")}
    for arm, folder in last.items():
        for kind in ("rollouts", "ranking", "policy", "decoder", "evaluation"):
            read_artifact(folder / kind, kind).verify()
        moved = load_file(folder / "policy" / "online.safetensors")
        assert all(not torch.equal(moved[name], policy[name]) for name in policy), arm
    kept, evolved = (load_file(last[arm] / "decoder" / "ema.safetensors") for arm in ("frozen", "coevolved"))
    assert all(torch.equal(kept[name], decoder[name]) for name in decoder)
    assert all(not torch.equal(evolved[name], decoder[name]) for name in decoder)
    tables = {arm: read_artifact(folder / "factorial", "factorial").json("metrics") for arm, folder in last.items()}
    assert {arm: {whose: set(row) for whose, row in table.items()} for arm, table in tables.items()} == {
        "frozen": {"frozen": {"original", "affine"}},
        "coevolved": {
            "coevolved": {"original", "affine", "coevolved"},
            "frozen": {"coevolved"},
            "real": {"coevolved"},
        },
    }
    cells = tables["coevolved"]
    forgotten = cells.pop("real")["coevolved"]
    reconstruction = read_artifact(workspace / "artifacts/reference", "reference").json("metrics")["reconstruction"]
    assert forgotten.keys() == {"fd", "fd_mid", "fd_patch", "l1"}
    assert 0 < abs(forgotten["l1"]["value"] - reconstruction["l1"]["value"]) < 0.05
    rows = [cell for table in tables.values() for row in table.values() for cell in row.values()]
    assert all(cell.keys() == rows[0].keys() and cell["fd"].keys() == {"value", "images", "real"} for cell in rows)
    found = read_artifact(last["coevolved"] / "evaluation", "evaluation").json("metrics")
    own, original = (cells["coevolved"][name]["fd_patch"]["value"] for name in ("coevolved", "original"))
    assert own == found["fd_patch"]["value"] != original == found["original"]["fd_patch"]["value"]
    assert (workspace / "report" / "index.html").stat().st_size > 10_000


def test_every_arm_starts_from_the_supervised_start(workspace: Path, tmp_path: Path) -> None:
    base = ShapesBackbone(workspace / "assets" / "shapes", CPU, torch.float32).policy_weights()
    untrained = load_file(workspace / "artifacts" / "sft" / "s0" / "policy" / "ema.safetensors")
    assert all(torch.equal(untrained[name], base[name]) for name in base)
    given, handed = (
        read_artifact(workspace / "artifacts" / name / "evaluation", "evaluation") for name in ("base", "sft/s0")
    )
    assert handed.manifest["files"] == given.manifest["files"]
    folder = tmp_path / "trained"
    shutil.copytree(workspace, folder, symlinks=True)
    change(folder, sft={"train": True})
    output = dvc(folder, "repro", "start@frozen-0", "start@coevolved-0", "sft_evaluation@0")
    ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
    assert ran == {"sft@0", "start@frozen-0", "start@coevolved-0", "sft_evaluation@0"}
    trained = load_file(folder / "artifacts" / "sft" / "s0" / "policy" / "ema.safetensors")
    assert all(not torch.equal(trained[name], base[name]) for name in base)
    for arm in ("frozen", "coevolved"):
        for kind in ("online", "ema"):
            first = load_file(folder / "artifacts" / arm / "s0" / "r0" / "policy" / f"{kind}.safetensors")
            assert all(torch.equal(first[name], trained[name]) for name in base), (arm, kind)
    found = read_artifact(folder / "artifacts" / "sft" / "s0" / "evaluation", "evaluation")
    assert found.json("metrics").keys() == given.json("metrics").keys()


def test_arms_are_paired(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both arms begin from the same base with the same prompts and random numbers: what they draw is the same."""
    folder = tmp_path / "rank-e"
    shutil.copytree(workspace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    drawn = [folder / "artifacts" / arm / "s0" / "r1" / "rollouts" for arm in ("frozen", "coevolved")]
    shutil.rmtree(drawn[1])
    rollouts.run(make_stage("rollouts", load(), arm="coevolved", seed=0, round=1))  # called from Python: not a copy
    assert (drawn[0] / "rollouts.safetensors").read_bytes() == (drawn[1] / "rollouts.safetensors").read_bytes()


def test_what_both_arms_do_alike_is_computed_once(workspace: Path) -> None:
    """The arms part when round 1's decoder is trained, which round 2's images are the first to show."""
    shared = {}
    for stage in ("rollouts", "ranking", "policy", "decoder"):
        for number in (1, 2):
            usage = [
                json.loads((workspace / ".rank-e" / "usage" / f"{stage}-{arm}-s0-r{number}.json").read_text())
                for arm in ("frozen", "coevolved")
            ]
            shared[stage, number] = any("shared" in item for item in usage)
    assert {cell for cell, found in shared.items() if found} == {
        *((stage, 1) for stage in ("rollouts", "ranking", "policy")),
        ("rollouts", 2),
    }


def test_ranking_orders_each_group_as_its_rewards_do(workspace: Path) -> None:
    ranking = load_file(workspace / "artifacts" / "coevolved" / "s0" / "r1" / "ranking" / "ranking.safetensors")
    rewards = ranking["rewards"]
    assert bool((rewards.std(dim=1) > 0).all())
    centred = rewards - rewards.mean(1, keepdim=True)
    torch.testing.assert_close(ranking["advantages"], (centred / rewards.std(1, keepdim=True)).clamp(-5, 5))
    torch.testing.assert_close(ranking["rank_weights"].mean(1), torch.ones(len(rewards)))
    assert torch.equal(ranking["rank_weights"].argsort(1), rewards.argsort(1))


def test_nothing_is_left_to_do(workspace: Path) -> None:
    assert "Data and pipelines are up to date" in dvc(workspace, "status")


def test_killed_anywhere_and_run_again_it_ends_in_the_same_bytes(workspace: Path, tmp_path: Path) -> None:
    """A third round: through, killed in the middle, after `rank-e gc`; rounds 1 and 2 are re-used in all of them."""
    rounds = [{"id": 1, "prev": 0}, {"id": 2, "prev": 1}, {"id": 3, "prev": 2}]
    targets = ["policy@coevolved-0-round2", "decoder@coevolved-0-round2"]
    results = []
    for name in ("whole", "killed", "freed"):
        folder = tmp_path / name
        shutil.copytree(workspace, folder, symlinks=True)
        if name == "freed":
            command = [sys.executable, "-m", "pipeline.cli", "gc", "--keep", "last", "--yes"]
            freed = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
            assert "freed " in freed.stdout and "up to date" in dvc(folder, "status")
            gone = {path.stem for path in (workspace / "artifacts/coevolved/s0/r1/policy").iterdir()} - {
                path.stem for path in (folder / "artifacts/coevolved/s0/r1/policy").iterdir()
            }
            assert gone == {"optimizer", "online"}
        change(folder, rounds=rounds, evaluated=[1, 2, 3], factorial={"round": 3})
        if name == "killed":
            kill_after(folder, targets, folder / "artifacts" / "coevolved" / "s0" / "r3" / "rollouts")
        output = dvc(folder, "repro", *targets)
        assert "Running stage 'rollouts@coevolved-0-round1'" not in output
        results.append(fingerprints(folder / "artifacts" / "coevolved" / "s0" / "r3"))
    assert results[0].keys() == results[1].keys() == results[2].keys() != set()
    assert results[0] == results[1] == results[2]


def kill_after(folder: Path, targets: list[str], sign: Path) -> None:
    """Start `dvc repro` and kill its whole process group once `sign` exists and the next stage has begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *targets],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not sign.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sign.exists()
    time.sleep(4)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_decoder_parameter_reruns_only_what_depends_on_it(workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(workspace, folder, symlinks=True)
    change(folder, decoder={"learning_rate": 1e-4})
    output = dvc(folder, "repro", "evaluation@coevolved-0-1", "policy@coevolved-0-round0")
    ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
    assert ran == {"decoder@coevolved-0-round0", "evaluation@coevolved-0-1"}
