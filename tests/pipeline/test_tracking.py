"""Tracking: parents and nested rounds, live curves, and no point or run twice whatever happens in between."""

import itertools
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking.points import allowed
from pipeline.tracking.store import PARENT, Store
from pipeline.tracking.tracking import Tracker
from rank_e.config import Params
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import PUBLISHED, evaluation_metrics, write_evaluation, write_project
from tests.helpers.tracked import history, runs, superseded


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
        "4 details/images": 8,
        "1 headline/fd": expected["fd"]["value"],
        "4 details/fd_low": expected["fd"]["low"],
        "4 details/fd_high": expected["fd"]["high"],
        "1 headline/token_kl": expected["token_kl"]["value"],
        "5 categories/accuracy/one object": category["value"],
        "5 categories/accuracy/one object_low": category["low"],
        "3 original decoder/fd": original["fd"]["value"],
        "5 categories/original/accuracy/one object": original["accuracy"]["categories"]["one object"]["value"],
    }.items():
        assert child.data.metrics[name] == pytest.approx(value), name
    assert not any("value" in name for name in child.data.metrics)
    log = read_artifact(folder / artifact_path("policy", "coevolved", 0, 2), "policy").table("log")
    curve = history(folder, child, "2 training/policy/loss")
    assert curve == list(zip(log["step"].tolist(), log["loss"].tolist(), strict=True))
    assert [step for step, _ in history(folder, parent, "1 headline/clip")] == [0, 1, 2]
    base = evaluation_metrics("base", 0, 0)["clip"]["value"]
    assert dict(history(folder, parent, "1 headline/clip"))[0] == pytest.approx(base)
    assert [step for step, _ in history(folder, parent, "2 training/policy/loss")] == list(range(16))
    assert sorted(parent.data.metrics)[0].startswith("1 headline/")
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

    writes = ("log_batch", "log_inputs", "log_artifact", "create_run", "delete_tag", "set_terminated", "update_run")
    writes += ("create_registered_model", "create_model_version", "set_registered_model_alias")
    for name in writes:
        monkeypatch.setattr(MlflowClient, name, refuse)
    monkeypatch.setattr(Store, "log_file", refuse)
    for again in (tracker, Tracker(folder, params)):
        tally = again.sync()
        assert not tally.created and not tally.superseded and not tally.extended
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
    assert base["5 categories/parti_clip/größe"] == 8.0 and base["5 categories/parti_clip/a/b"] == 0.0
    child = found["coevolved/s0/r1"].data.metrics
    expected = evaluation_metrics("coevolved", 0, 1, PUBLISHED)
    assert child["5 categories/hps/concept-art"] == pytest.approx(expected["hps"]["categories"]["concept-art"]["value"])
    changed = allowed("5 categories/parti_clip/Properties (& Positioning)")
    assert changed.startswith("5 categories/parti_clip/Properties __ Positioning_ ")
    value = expected["parti_clip"]["categories"]["Properties (& Positioning)"]["value"]
    assert child[changed] == pytest.approx(value)


def test_a_supervised_start_has_a_run_of_its_own(project: tuple[Path, Params]) -> None:
    folder, params = project
    path = folder / artifact_path("sft_evaluation", seed=0)
    write_evaluation(path, "sft", 0, 0, params={"sft": {"train": False}})
    Tracker(folder, params).sync()
    assert "sft/s0" not in runs(folder)
    trained = params.model_copy(update={"sft": params.sft.model_copy(update={"train": True})})
    Tracker(folder, trained).sync()
    assert "sft/s0" not in runs(folder)  # it says that it was only handed on
    write_evaluation(path, "sft", 0, 0, params={"sft": {"train": True}})
    params = params.model_copy(update={"sft": params.sft.model_copy(update={"train": True})})
    Tracker(folder, params).sync()
    assert Tracker(folder, params).sync().created == []
    run = runs(folder)["sft/s0"]
    expected = evaluation_metrics("sft", 0, 0)["fd"]["value"]
    assert history(folder, run, "1 headline/fd") == [(0, pytest.approx(expected))]
    assert (run.info.run_name, run.data.params["sft.train"], run.info.status) == ("sft s0", "True", "FINISHED")
    for arm in params.arms:  # round 0 of an arm is what it started from
        assert dict(history(folder, runs(folder)[f"{arm}/s0"], "1 headline/fd"))[0] == pytest.approx(expected)
    write_evaluation(path, "sft", 5, 0, params={"sft": {"train": True}})
    arms = [f"{arm}/s0 (another start)" for arm in params.arms]
    assert Tracker(folder, params).sync().superseded == ["sft/s0 (another evaluation)", *arms]
    expected = evaluation_metrics("sft", 5, 0)["fd"]["value"]
    assert history(folder, runs(folder)["sft/s0"], "1 headline/fd") == [(0, pytest.approx(expected))]


def test_an_evaluation_of_other_numbers_of_images_is_not_shown_beside_the_base(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    assert history(folder, runs(folder)["frozen/s0/r1"], "1 headline/fd")
    size = {"images": 4, "real": 64}
    with monkeypatch.context() as patch:
        patch.setattr("tests.helpers.fake_artifacts.size_of", lambda key, *_: size if key.startswith("fd") else {})
        write_evaluation(folder / artifact_path("baseline"), "base", 0, 0)
        tally = Tracker(folder, params).sync()
        assert tally.superseded[0] == "base (another evaluation)" and len(tally.superseded) == 3
        assert "is of other numbers of images than the base's" in tally.superseded[1]
        found = runs(folder)
        assert "1 headline/fd" in found["base"].data.metrics
        assert not any("1 headline/fd" in found[key].data.metrics for key in ("frozen/s0/r1", "coevolved/s0/r2"))
        assert [step for step, _ in history(folder, found["frozen/s0"], "1 headline/fd")] == [0]
        assert "2 training/policy/loss" in found["frozen/s0/r1"].data.metrics  # what the round trained stays
        write_evaluation(folder / artifact_path("evaluation", "frozen", 0, 1), "frozen", 0, 1)
        assert not Tracker(folder, params).sync().superseded
    assert [step for step, _ in history(folder, runs(folder)["frozen/s0"], "1 headline/fd")] == [0, 1]


def test_a_broken_copy_is_completed_without_doubles(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    whole, calls = MlflowClient.log_batch, itertools.count(1)

    def broken(client: MlflowClient, run_id: str, metrics: list, params: list, tags: list) -> None:
        at = next(calls)
        whole(client, run_id, metrics, params, [] if at % 9 == 0 else tags)
        if at % 9 == 0:
            raise KeyboardInterrupt

    stops = 0
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", broken)
        while True:
            try:
                Tracker(folder, params).sync()
                break
            except KeyboardInterrupt:
                stops += 1
    assert stops > 3 and not superseded(folder)
    found = runs(folder)
    assert set(found) == {"base", *(f"{arm}/s0{end}" for arm in params.arms for end in ("", "/r1", "/r2"))}
    for key, steps in (("frozen/s0/r1", range(8)), ("coevolved/s0/r2", range(8, 16)), ("coevolved/s0", range(16))):
        assert [step for step, _ in history(folder, found[key], "2 training/policy/loss")] == list(steps)
        assert found[key].info.status == "FINISHED" and found[key].data.params["arm"] == key.split("/")[0]
