"""Tracking: parents and nested rounds, live curves, and no point or run twice whatever happens in between."""

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML

from pipeline.tracking.following import follow
from pipeline.tracking.lock import TrackingError
from pipeline.tracking.origin import describe
from pipeline.tracking.points import allowed, plain_params
from pipeline.tracking.registry import MODEL
from pipeline.tracking.store import BY, CURRENT, EXPERIMENT, KEY, OTHER, PARENT, STATE, SUPERSEDED, Store
from pipeline.tracking.tracking import Tracker
from rank_e.config import Params, load
from stages.runtime.artifacts import MANIFEST, ArtifactWriter, manifest_sha256, read_artifact
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import PUBLISHED, evaluation_metrics, write_evaluation, write_project, write_training

ROOT = Path(__file__).parents[2]


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


def every_run(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def runs(folder: Path) -> dict[str, Run]:
    """The current runs by their keys."""
    found = [run for run in every_run(folder) if run.data.tags[STATE] == CURRENT]
    keys = [run.data.tags[KEY] for run in found]
    assert len(keys) == len(set(keys)), "a run is there twice"
    return {run.data.tags[KEY]: run for run in found}


def superseded(folder: Path) -> list[Run]:
    found = [run for run in every_run(folder) if run.data.tags[STATE] == SUPERSEDED]
    assert all(run.info.status in ("FINISHED", "KILLED") and BY in run.data.tags for run in found)
    return found


def history(folder: Path, run: Run, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    points = client.get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def moments(folder: Path, run: Run, key: str) -> dict[int, int]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return {point.step: point.timestamp for point in client.get_metric_history(run.info.run_id, key)}


def write_events(folder: Path, stage: str, steps: range, value: Callable[[int], float], began: float = 1.0) -> None:
    path = folder / ".rank-e" / "events" / f"coevolved-s0-r2-{stage}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"step": step, "total": 8, "metrics": {"step": step, "loss": value(step)}, "time": began + step})
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


def test_a_changed_artifact_supersedes_the_arm_and_only_it(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    before = runs(folder)
    write_evaluation(folder / artifact_path("evaluation", "coevolved", 0, 2), "coevolved", 7, 2)
    tally = Tracker(folder, params).sync()
    after = runs(folder)
    assert tally.superseded == ["coevolved/s0 (another evaluation in round 2)"]
    assert after["frozen/s0"].info.run_id == before["frozen/s0"].info.run_id
    assert after["coevolved/s0"].info.run_id != before["coevolved/s0"].info.run_id
    fresh = evaluation_metrics("coevolved", 7, 2)["clip"]["value"]
    assert dict(history(folder, after["coevolved/s0"], "1 headline/clip"))[2] == pytest.approx(fresh)
    assert len(history(folder, after["coevolved/s0"], "1 headline/clip")) == 3
    old = {run.data.tags[KEY]: run for run in superseded(folder)}
    assert set(old) == {"coevolved/s0", "coevolved/s0/r1", "coevolved/s0/r2"}  # kept, with what they showed
    was = evaluation_metrics("coevolved", 0, 2)["clip"]["value"]
    assert dict(history(folder, old["coevolved/s0"], "1 headline/clip"))[2] == pytest.approx(was)
    assert old["coevolved/s0"].data.tags[BY] == after["coevolved/s0"].info.run_id


def test_artifacts_that_come_back_make_their_run_current_again(project: tuple[Path, Params]) -> None:
    folder, params = project
    path = folder / artifact_path("evaluation", "coevolved", 0, 2)
    Tracker(folder, params).sync()
    first = runs(folder)["coevolved/s0"].info.run_id
    shutil.copytree(path, folder / "kept")
    write_evaluation(path, "coevolved", 7, 2)
    tracker = Tracker(folder, params)
    tracker.sync()
    second = runs(folder)["coevolved/s0"].info.run_id
    shutil.rmtree(path)
    shutil.copytree(folder / "kept", path)  # as DVC restores them from its cache
    tally = tracker.sync()
    assert runs(folder)["coevolved/s0"].info.run_id == first and not tally.created
    assert {run.data.tags[BY] for run in superseded(folder)} == {first}
    assert second in {run.info.run_id for run in superseded(folder)}


def edit(folder: Path, section: str, **values: object) -> Params:
    yaml = YAML(typ="safe", pure=True)
    data = yaml.load((folder / "params.yaml").read_text())
    data[section] |= values
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(data, file)
    return load(folder / "params.yaml")


def test_parameters_are_the_artifacts_and_not_those_of_the_moment(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    before = {key: run.info.run_id for key, run in runs(folder).items()}
    was = str(params.policy.learning_rate)
    params = edit(folder, "policy", learning_rate=0.5)
    tally = Tracker(folder, params).sync()
    assert not tally.created and not tally.superseded and not tally.extended
    assert {key: run.info.run_id for key, run in runs(folder).items()} == before
    for key in ("coevolved/s0", "coevolved/s0/r1"):
        found = runs(folder)[key].data.params
        assert (found["policy.learning_rate"], found["decoder.steps"]) == (was, "24")
    # Round 1 is trained anew: what lies there of round 2 is of the run before.
    for number in (1, 2):
        for stage in ("policy", "evaluation"):
            path = artifact_path(stage, "coevolved", 0, number)
            given = {"policy": artifact_path("policy", "coevolved", 0, 1)} if (stage, number) != ("policy", 1) else {}
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                rewrite(path, given)
    Tracker(folder, params).sync()
    write_training(folder, "coevolved", 0, 1)
    tally = Tracker(folder, params).sync()
    assert tally.superseded == ["coevolved/s0 (another policy in round 1)"]
    found = runs(folder)
    assert found["coevolved/s0"].data.params["policy.learning_rate"] == "0.5"
    assert "1 headline/fd" not in found["coevolved/s0/r1"].data.metrics
    assert not any("2 training/policy/loss" in found[key].data.metrics for key in found if key == "coevolved/s0/r2")
    assert found["coevolved/s0"].data.tags["params_digest"] != found["frozen/s0"].data.tags["params_digest"]


def test_a_parameter_that_changed_on_the_way_is_named(project: tuple[Path, Params]) -> None:
    folder, params = project
    was = str(params.policy.learning_rate)
    edit(folder, "policy", learning_rate=0.5)
    write_training(folder, "coevolved", 0, 2)
    for _ in range(2):
        Tracker(folder, params).sync()
    found = runs(folder)
    rates = {key: found[f"coevolved/s0{key}"].data.params["policy.learning_rate"] for key in ("", "/r1", "/r2")}
    assert rates == {"": was, "/r1": was, "/r2": "0.5"}
    assert found["coevolved/s0"].data.tags[OTHER] == "policy.learning_rate"
    assert OTHER not in found["coevolved/s0/r2"].data.tags and OTHER not in found["frozen/s0"].data.tags


def rewrite(path: Path, inputs: dict[str, Path]) -> None:
    """An artifact again, with inputs."""
    old = read_artifact(path, path.name)
    manifest = old.manifest
    used = manifest["params"]
    with ArtifactWriter(path, path.name, seed=0, deterministic=True, inputs=inputs, params=used) as out:
        out.copy(old)


def test_rounds_of_another_profile_do_not_mix_in(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    before = runs(folder)
    # The next profile has trained its first policy; the artifacts of the second round are still the other's.
    other = edit(folder, "policy", learning_rate=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("ranking", "policy", "evaluation"):
            given = artifact_path("policy", "coevolved", 0, 1)
            rewrite(artifact_path(stage, "coevolved", 0, 2), {"previous": given})
    Tracker(folder, params).sync()
    write_training(folder, "coevolved", 0, 1)
    Tracker(folder, other).sync()
    found = runs(folder)
    assert "coevolved/s0/r2" not in found and "coevolved/s0/r1" in found
    assert before["frozen/s0"].info.run_id == found["frozen/s0"].info.run_id
    kept = [run for run in superseded(folder) if run.data.tags[KEY] == "coevolved/s0/r2"]
    assert len(kept) == 2 and all("1 headline/fd" in run.data.metrics for run in kept)


def test_another_projects_runs_in_one_store_are_left_alone(
    project: tuple[Path, Params], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, params = project
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    Tracker(folder, params).sync()
    before = {run.info.run_id: dict(run.data.tags) for run in every_run(folder)}
    second = tmp_path_factory.mktemp("second")
    others = write_project(second, seeds=[0], rounds=2)
    edit(second, "policy", learning_rate=0.5)
    for number in (1, 2):
        write_training(second, "coevolved", 0, number)
    for _ in range(2):
        for tracker in (Tracker(second, others, uri), Tracker(folder, params, uri)):
            tracker.sync()
    found = {run.info.run_id: run for run in every_run(folder)}
    assert {run_id: dict(found[run_id].data.tags) for run_id in before} == before
    ours, theirs = (
        [run for run in found.values() if run.data.tags[KEY] == "coevolved/s0" and (run.info.run_id in before) is own]
        for own in (True, False)
    )
    assert [run.data.params["policy.learning_rate"] for run in theirs] == ["0.5"] and len(ours) == 1
    # What both have computed alike is one run: a second machine that goes on with the same artifacts finds it.
    assert len([run for run in found.values() if run.data.tags[KEY] == "frozen/s0"]) == 1


def test_a_parameter_that_is_too_long_does_not_begin_a_new_run(project: tuple[Path, Params]) -> None:
    folder, params = project
    words = [f"word{number:05d}" for number in range(700)]
    reward = {"kind": "mine:words", "weight": 1.0, "normalise": "none", "words": words}
    edit(folder, "ranking", rewards={"words": reward, **params.ranking.model_dump(mode="json")["rewards"]})
    for number in (1, 2):
        write_training(folder, "coevolved", 0, number)
    Tracker(folder, params).sync()
    for _ in range(2):
        tally = Tracker(folder, params).sync()
        assert not tally.created and not tally.superseded and not tally.extended
    value = runs(folder)["coevolved/s0"].data.params["ranking.rewards.words.words"]
    assert value.startswith("['word00000', 'word00001'") and len(value) == 500
    digest = hashlib.sha256(str(words).encode()).hexdigest()[:16]
    assert value.endswith(f"... ({len(str(words))} characters, sha256 {digest})")
    assert plain_params({"a": {"b": "x" * 500}}) == {"a.b": "x" * 500}


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
    usage = {"seconds": 12.5, "peak_rss_mb": 100.0, "ended": time.time(), "revision": "f" * 40}
    (folder / ".rank-e/usage").mkdir(parents=True)
    (folder / ".rank-e/usage/policy-coevolved-s0-r2.json").write_text(json.dumps(usage))
    (folder / ".rank-e/usage/policy-coevolved-s0-r1.json").write_text(json.dumps(usage | {"ended": 1.0}))
    Tracker(folder, params).sync()
    found = runs(folder)
    tags = found["coevolved/s0/r2"].data.tags
    wanted = {"arm": "coevolved", "seed": "0", "round": "2", "mlflow.source.git.commit": "f" * 40}
    assert wanted.items() <= tags.items() and tags["mlflow.user"] and tags["params_digest"]
    assert found["coevolved/s0/r2"].data.metrics["4 details/policy seconds"] == 12.5
    assert "4 details/policy seconds" not in found["coevolved/s0/r1"].data.metrics  # of another artifact
    # The tests' own evaluation is no profile's; the arm's training is that of these.
    assert found["coevolved/s0"].data.tags["profile"] == "none"
    assert "shapes" in describe(folder, "frozen", {"decoder.train": "False", "seed": "0"})["profile"].split(", ")


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


def test_a_dead_server_costs_seconds_and_one_line(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = project
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9.*set MLFLOW_TRACKING_URI"):
        Tracker(folder, params, "http://127.0.0.1:9").sync()
