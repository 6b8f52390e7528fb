"""What a run shows while stages work, of when, and where from."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from pipeline.tracking.following import follow
from pipeline.tracking.lock import TrackingError
from pipeline.tracking.origin import describe
from pipeline.tracking.registry import MODEL
from pipeline.tracking.tracking import Tracker
from rank_e.config import Params
from stages.report.figures import colour
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import MANIFEST, manifest_sha256, read_artifact
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import write_evaluation, write_training
from tests.helpers.tracked import history, moments, runs, write_events

ROOT = Path(__file__).parents[2]
CPU = "system/cpu_utilization_percentage"


def test_points_carry_the_time_of_their_steps(project: tuple[Path, Params]) -> None:
    folder, params = project
    cell = ("coevolved", 0, 2)
    log = read_artifact(folder / artifact_path("policy", *cell), "policy").table("log")
    lines = [
        {"step": row["step"], "total": 8, "metrics": row, "time": 1000.0 + row["step"]}
        for row in log.to_dict("records")
    ]
    path = folder / ".rank-e/events/coevolved-s0-r2-policy.jsonl"
    path.parent.mkdir(parents=True)
    lines[0]["metrics"] = lines[0]["metrics"] | {"loss": 5.0}  # of another computation
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(folder / artifact_path("policy", *cell) / MANIFEST, (2000.0, 2000.0))
    Tracker(folder, params).sync()
    found = moments(folder, runs(folder)["coevolved/s0/r2"], "2 training/policy/loss")
    assert found == {8: 2_000_000} | {step: 1_000_000 + 1000 * step for step in range(9, 16)}


def test_runs_carry_what_groups_them(project: tuple[Path, Params]) -> None:
    folder, params = project
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    usage = {"seconds": 12.5, "peak_rss_mb": 100.0, "revision": "f" * 40}
    usage["artifact"] = manifest_sha256(folder / artifact_path("policy", "coevolved", 0, 2))
    (folder / ".rank-e/usage").mkdir(parents=True)
    for number in (1, 2):
        (folder / f".rank-e/usage/policy-coevolved-s0-r{number}.json").write_text(json.dumps(usage))
    Tracker(folder, params).sync()
    found = runs(folder)
    tags = found["coevolved/s0/r2"].data.tags
    wanted = {"arm": "coevolved", "seed": "0", "round": "2", "mlflow.source.git.commit": "f" * 40}
    assert wanted.items() <= tags.items() and tags["mlflow.user"] and tags["params_digest"]
    colours = {key: run.data.tags["mlflow.runColor"] for key, run in found.items()}
    assert colours["coevolved/s0"] == colours["coevolved/s0/r2"] == colour("coevolved")  # as the report draws it
    assert colours["frozen/s0"] == colour("frozen") and colours["base"] == colour("base")
    assert found["coevolved/s0/r2"].data.metrics["4 details/policy seconds"] == 12.5
    assert "4 details/policy seconds" not in found["coevolved/s0/r1"].data.metrics  # of another artifact
    # The tests' own evaluation is no profile's; the arm's training is that of these.
    assert found["coevolved/s0"].data.tags["profile"] == "none"
    assert "shapes" in describe(folder, "frozen", {"decoder.train": "False", "seed": "0"})["profile"].split(", ")


def test_what_a_stage_cost_comes_to_a_round_that_was_copied_before(project: tuple[Path, Params]) -> None:
    """A stage writes its account a moment after its artifact, or in another try, after a kill in that moment."""
    folder, params = project
    Tracker(folder, params).sync()
    cost = "4 details/policy seconds"
    assert all(cost not in run.data.metrics for run in runs(folder).values())
    usage = {"seconds": 12.5, "artifact": manifest_sha256(folder / artifact_path("policy", "frozen", 0, 1))}
    (folder / ".rank-e/usage").mkdir(parents=True)
    (folder / ".rank-e/usage/policy-frozen-s0-r1.json").write_text(json.dumps(usage))
    Tracker(folder, params).sync()
    assert {key for key, run in runs(folder).items() if cost in run.data.metrics} == {"frozen/s0/r1"}
    assert history(folder, runs(folder)["frozen/s0/r1"], cost) == [(1, 12.5)]


def test_a_round_says_its_data_and_what_each_prompt_earned(project: tuple[Path, Params]) -> None:
    folder, params = project
    prompts, path = artifact_path("prompts", seed=0, round=1), artifact_path("ranking", "frozen", 0, 1)
    used = {"prompts": {"per_round": 2}, "data": {"training": {"folder": "somewhere"}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with ArtifactWriter(prompts, "prompts", seed=0, deterministic=True, params=used) as out:
            out.table("prompts", pd.DataFrame({"prompt": ['a "red" circle', "a square, and another"]}))
        inputs = {"prompts": prompts}
        with ArtifactWriter(path, "ranking", seed=0, deterministic=True, inputs=inputs) as out:
            out.tensors("ranking", {"rewards": torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 2.0]])})
            out.json("metrics", {"reward_mean": 3.0})
    Tracker(folder, params).sync()
    run = runs(folder)["frozen/s0/r1"]
    table = pd.read_csv(folder / run.info.artifact_uri / "rewards.csv")
    assert table.values.tolist() == [['a "red" circle', 2.0, 3.0, 1.0], ["a square, and another", 4.0, 5.0, 2.0]]
    (data,) = (item.dataset for item in run.inputs.dataset_inputs)
    assert (data.name, data.digest) == ("prompts", manifest_sha256(folder / prompts)[:32])
    assert str(prompts) in data.source
    assert run.data.params["prompts.per_round"] == "2" and run.data.params["data.training.folder"] == "somewhere"


def test_final_weights_are_registered_by_reference(project: tuple[Path, Params]) -> None:
    folder, params = project
    for _ in range(2):
        Tracker(folder, params).sync()
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    model = client.get_registered_model(MODEL)
    assert model.aliases.keys() == {"frozen", "frozen-s0", "coevolved", "coevolved-s0"}
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 2
    version = client.get_model_version_by_alias(MODEL, "coevolved")
    assert version.source == "dvc://artifacts/coevolved/s0/r2"
    assert version.run_id == runs(folder)["coevolved/s0"].info.run_id
    shas = {kind: manifest_sha256(folder / artifact_path(kind, "coevolved", 0, 2)) for kind in ("policy", "decoder")}
    assert version.tags == shas | {"arm": "coevolved", "seed": "0"}
    write_evaluation(folder / artifact_path("evaluation", "coevolved", 0, 2), "coevolved", 7, 2)
    Tracker(folder, params).sync()
    again = client.get_model_version_by_alias(MODEL, "coevolved")
    assert again.run_id == runs(folder)["coevolved/s0"].info.run_id != version.run_id


def test_live_points_grow_and_become_the_final_curve(project: tuple[Path, Params]) -> None:
    folder, params = project
    cell = ("coevolved", 0, 2)
    log = read_artifact(folder / artifact_path("policy", *cell), "policy").table("log")
    value = dict(zip(log["step"].tolist(), log["loss"].tolist(), strict=True))
    for stage in ("policy", "decoder", "evaluation"):
        shutil.rmtree(folder / artifact_path(stage, *cell))
    tracker = Tracker(folder, params)
    write_events(folder, "policy", range(8, 11), value.__getitem__)
    tracker.sync()
    child = runs(folder)["coevolved/s0/r2"]
    assert child.info.status == "RUNNING"
    assert history(folder, child, "2 training/policy/loss") == [(step, value[step]) for step in (8, 9, 10)]
    write_events(folder, "policy", range(8, 14), value.__getitem__)
    tracker.sync()
    Tracker(folder, params).sync()  # another process knows nothing of the lines that were copied
    assert [step for step, _ in history(folder, child, "2 training/policy/loss")] == list(range(8, 14))
    write_training(folder, *cell)
    tally = tracker.sync()
    assert not tally.superseded
    assert history(folder, child, "2 training/policy/loss") == sorted(value.items())


def test_a_stage_that_begins_anew_leaves_no_old_points(project: tuple[Path, Params]) -> None:
    folder, params = project
    shutil.rmtree(folder / artifact_path("policy", "coevolved", 0, 2))
    tracker = Tracker(folder, params)
    write_events(folder, "policy", range(8, 14), lambda step: 1.0 * step)
    tracker.sync()
    write_events(folder, "policy", range(8, 10), lambda step: -1.0 * step)
    assert tracker.sync().superseded
    child = runs(folder)["coevolved/s0/r2"]
    assert history(folder, child, "2 training/policy/loss") == [(8, -8.0), (9, -9.0)]


def test_follow_goes_on_after_errors_and_copies_once_more_at_the_end(project: tuple[Path, Params]) -> None:
    folder, params = project
    said: list[str] = []
    tries = iter([TrackingError("MLflow is away"), Tracker(folder, params)])

    def opening() -> Tracker:
        found = next(tries)
        if isinstance(found, Exception):
            raise found
        return found

    waits = iter([False, True])
    follow(opening, lambda seconds: next(waits), said.append, every=0.0)
    assert said[0] == "MLflow is away (trying again)" and "created" in said[1]
    assert "coevolved/s0/r2" in runs(folder)


def test_an_arm_that_is_being_made_carries_what_the_machine_does(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "3")  # it would end by itself only then
    decoder, evaluation = (artifact_path(stage, "coevolved", 0, 2) for stage in ("decoder", "evaluation"))
    (folder / decoder).rename(folder / "decoder")
    (folder / evaluation).rename(folder / "evaluation")
    passes: list[int] = []

    def wait(seconds: float) -> bool:
        passes.append(len([thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]))
        if len(passes) == 1:  # of what lay there before nobody knows who makes it
            (folder / "decoder").rename(folder / decoder)
        if len(passes) == 2:
            deadline = time.monotonic() + 60
            while not history(folder, runs(folder)["coevolved/s0"], CPU) and time.monotonic() < deadline:
                time.sleep(0.1)
            (folder / "evaluation").rename(folder / evaluation)
        return len(passes) == 3

    follow(lambda: Tracker(folder, params), wait, lambda _: None, every=0.0)
    assert passes == [0, 1, 0]  # an arm that is whole is watched no longer
    found = runs(folder)
    assert history(folder, found["coevolved/s0"], CPU) and CPU not in found["frozen/s0"].data.metrics
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_a_dead_server_costs_seconds_and_one_line(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9.*set MLFLOW_TRACKING_URI"):
        Tracker(folder, params, "http://127.0.0.1:9").sync()
