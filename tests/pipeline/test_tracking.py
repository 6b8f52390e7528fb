"""Tracking: parents and nested rounds, live curves, and no point or run twice whatever happens in between."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.tracking.points import EPOCH, allowed
from pipeline.tracking.store import EXPERIMENT, KEY, PARENT, Store, TrackingError
from pipeline.tracking.tracking import Tracker, follow
from rank_e.config import Params
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import PUBLISHED, evaluation_metrics, write_evaluation, write_project, write_training


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised sqlite file: making its tables takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("store")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Params]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path, write_project(tmp_path, seeds=[0], rounds=2)


def runs(folder: Path) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = [run.data.tags[KEY] for run in found]
    assert len(keys) == len(set(keys)), "a run is there twice"
    return {run.data.tags[KEY]: run for run in found}


def history(folder: Path, run: Run, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    points = client.get_metric_history(run.info.run_id, key)
    assert all(point.timestamp == EPOCH + point.step for point in points)
    return sorted((point.step, point.value) for point in points)


def write_events(folder: Path, stage: str, steps: range, value: Callable[[int], float]) -> None:
    path = folder / ".rank-e" / "events" / f"coevolved-s0-r2-{stage}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"step": step, "total": 8, "metrics": {"step": step, "loss": value(step)}, "time": 1.0})
        for step in steps
    ]
    path.write_text("\n".join(lines) + "\n" + '{"step": 9, "to', encoding="utf-8")


def test_runs_nest_and_hold_metrics_curves_params_and_images(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    found = runs(folder)
    arms = {f"{arm}/s0" for arm in params.arms}
    assert set(found) == {"base"} | arms | {f"{arm}/r{number}" for arm in arms for number in (1, 2)}
    parent, child = found["coevolved/s0"], found["coevolved/s0/r2"]
    assert child.data.tags[PARENT] == parent.info.run_id and child.info.status == "FINISHED"
    expected = evaluation_metrics("coevolved", 0, 2)
    original, category = expected["original"], expected["accuracy"]["categories"]["one object"]
    for name, value in {
        "images": 8,
        "fd": expected["fd"]["value"],
        "fd_low": expected["fd"]["low"],
        "fd_high": expected["fd"]["high"],
        "token_kl": expected["token_kl"]["value"],
        "accuracy/one object": category["value"],
        "accuracy/one object_low": category["low"],
        "original/fd": original["fd"]["value"],
        "original/accuracy/one object": original["accuracy"]["categories"]["one object"]["value"],
    }.items():
        assert child.data.metrics[name] == pytest.approx(value), name
    assert not any("value" in name or "categories" in name for name in child.data.metrics)
    log = read_artifact(folder / artifact_path("policy", "coevolved", 0, 2), "policy").table("log")
    curve = history(folder, child, "policy/loss")
    assert curve == list(zip(log["step"].tolist(), log["loss"].tolist(), strict=True))
    assert [step for step, _ in history(folder, parent, "clip")] == [1, 2]
    assert parent.data.params["decoder.train"] == "True"
    assert found["frozen/s0"].data.params["decoder.train"] == "False"
    assert (folder / "mlruns" / child.info.run_id / "artifacts" / "images.png").is_file()


def test_a_second_pass_and_a_second_process_write_nothing(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    tracker = Tracker(folder, params)
    tracker.sync()
    before = {key: run.info.run_id for key, run in runs(folder).items()}

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is new, nothing should be written")

    for name in ("log", "create", "tag", "delete"):
        monkeypatch.setattr(Store, name, refuse)
    for again in (tracker, Tracker(folder, params)):
        tally = again.sync()
        assert not tally.created and not tally.replaced and not tally.extended
    assert {key: run.info.run_id for key, run in runs(folder).items()} == before


def test_categories_of_any_name_become_names_that_mlflow_takes(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    params = write_project(tmp_path, seeds=[0], rounds=1, world=PUBLISHED)
    odd = ("a/b", "a//b", "/a", "a/", "..", "a@b", "a#b", "a,b", "größe", "x" * 300, "x" * 301, "line\nbreak", "ends.")
    categories = {name: {"value": float(place)} for place, name in enumerate(odd)}
    metrics = {"parti_clip": {"value": -1.0, "categories": categories}}
    monkeypatch.setattr("tests.helpers.fake_artifacts.evaluation_metrics", lambda *_: metrics)
    write_evaluation(tmp_path / artifact_path("baseline"), "base", 0, 0, PUBLISHED)
    for _ in range(2):
        Tracker(tmp_path, params).sync()
    found = runs(tmp_path)
    base = found["base"].data.metrics
    assert sorted(base.values()) == [float(place) for place in range(-1, len(odd))]  # none is lost, no two share a name
    assert base["parti_clip/größe"] == 8.0 and base["parti_clip/a/b"] == 0.0
    child = found["coevolved/s0/r1"].data.metrics
    expected = evaluation_metrics("coevolved", 0, 1, PUBLISHED)
    assert child["hps/concept-art"] == pytest.approx(expected["hps"]["categories"]["concept-art"]["value"])
    changed = allowed("parti_clip/Properties (& Positioning)")
    assert changed.startswith("parti_clip/Properties __ Positioning_ ")
    value = expected["parti_clip"]["categories"]["Properties (& Positioning)"]["value"]
    assert child[changed] == pytest.approx(value)


def test_a_supervised_start_has_a_run_of_its_own(project: tuple[Path, Params]) -> None:
    folder, params = project
    path = folder / artifact_path("sft_evaluation", seed=0)
    write_evaluation(path, "sft", 0, 0)
    Tracker(folder, params).sync()
    assert "sft/s0" not in runs(folder)
    params = params.model_copy(update={"sft": params.sft.model_copy(update={"train": True})})
    Tracker(folder, params).sync()
    assert Tracker(folder, params).sync().created == []
    run = runs(folder)["sft/s0"]
    expected = evaluation_metrics("sft", 0, 0)["fd"]["value"]
    assert history(folder, run, "fd") == [(0, pytest.approx(expected))]
    assert (run.info.run_name, run.data.params["steps"], run.info.status) == ("sft s0", "200", "FINISHED")
    write_evaluation(path, "sft", 5, 0)
    assert Tracker(folder, params).sync().replaced == ["sft/s0"]
    expected = evaluation_metrics("sft", 5, 0)["fd"]["value"]
    assert history(folder, runs(folder)["sft/s0"], "fd") == [(0, pytest.approx(expected))]


def test_an_evaluation_of_other_numbers_of_images_is_not_shown_beside_the_base(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    assert history(folder, runs(folder)["frozen/s0"], "fd") and "fd_images" not in runs(folder)["base"].data.metrics
    size = {"images": 4, "real": 64}
    with monkeypatch.context() as patch:
        patch.setattr("tests.helpers.fake_artifacts.size_of", lambda key, *_: size if key.startswith("fd") else {})
        write_evaluation(folder / artifact_path("baseline"), "base", 0, 0)
        tally = Tracker(folder, params).sync()
        assert tally.replaced[0] == "base" and len(tally.replaced) == 3
        assert "is of other numbers of images than the base's" in tally.replaced[1]
        found = runs(folder)
        assert "fd" in found["base"].data.metrics
        assert not any("fd" in found[key].data.metrics for key in ("frozen/s0", "frozen/s0/r1", "coevolved/s0/r2"))
        assert "policy/loss" in found["frozen/s0/r1"].data.metrics  # what the round trained stays
        write_evaluation(folder / artifact_path("evaluation", "frozen", 0, 1), "frozen", 0, 1)
        assert not Tracker(folder, params).sync().replaced
    assert [step for step, _ in history(folder, runs(folder)["frozen/s0"], "fd")] == [1]


def test_a_broken_copy_is_completed_without_doubles(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    with monkeypatch.context() as patch:
        patch.setattr(Store, "tag", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Tracker(folder, params).sync()
    Tracker(folder, params).sync()
    child = runs(folder)["frozen/s0/r1"]
    assert [step for step, _ in history(folder, child, "policy/loss")] == list(range(8))


def test_a_changed_artifact_replaces_the_arm_and_only_it(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    before = runs(folder)
    write_evaluation(folder / artifact_path("evaluation", "coevolved", 0, 2), "coevolved", 7, 2)
    tally = Tracker(folder, params).sync()
    after = runs(folder)
    assert tally.replaced == ["coevolved/s0 (another evaluation in round 2)"]
    assert after["frozen/s0"].info.run_id == before["frozen/s0"].info.run_id
    assert after["coevolved/s0"].info.run_id != before["coevolved/s0"].info.run_id
    fresh = evaluation_metrics("coevolved", 7, 2)["clip"]["value"]
    assert dict(history(folder, after["coevolved/s0"], "clip"))[2] == pytest.approx(fresh)
    assert len(history(folder, after["coevolved/s0"], "clip")) == 2


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
    assert history(folder, child, "policy/loss") == [(step, value[step]) for step in (8, 9, 10)]
    write_events(folder, "policy", range(8, 14), value.__getitem__)
    tracker.sync()
    Tracker(folder, params).sync()  # another process knows nothing of the lines that were copied
    assert [step for step, _ in history(folder, child, "policy/loss")] == list(range(8, 14))
    write_training(folder, *cell)
    tally = tracker.sync()
    assert not tally.replaced
    assert history(folder, child, "policy/loss") == sorted(value.items())


def test_a_stage_that_begins_anew_leaves_no_old_points(project: tuple[Path, Params]) -> None:
    folder, params = project
    shutil.rmtree(folder / artifact_path("policy", "coevolved", 0, 2))
    tracker = Tracker(folder, params)
    write_events(folder, "policy", range(8, 14), lambda step: 1.0 * step)
    tracker.sync()
    write_events(folder, "policy", range(8, 10), lambda step: -1.0 * step)
    assert tracker.sync().replaced
    child = runs(folder)["coevolved/s0/r2"]
    assert history(folder, child, "policy/loss") == [(8, -8.0), (9, -9.0)]


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


def test_a_dead_server_costs_seconds_and_one_line(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9.*set MLFLOW_TRACKING_URI"):
        Tracker(folder, params, "http://127.0.0.1:9")
