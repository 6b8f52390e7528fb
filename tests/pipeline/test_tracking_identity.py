"""Which run the artifacts are of: what supersedes one, what brings it back, and what never mixes in."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking.points import plain_params
from pipeline.tracking.store import BY, KEY, OTHER, PARENT, SHA
from pipeline.tracking.tracking import Tracker
from rank_e.config import Params
from stages.runtime.stage import artifact_path
from tests.helpers.fake_artifacts import evaluation_metrics, write_evaluation, write_project, write_training
from tests.helpers.tracked import edit, every_run, history, rewrite, runs, superseded


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


def test_rounds_whose_run_was_deleted_are_superseded(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    before = runs(folder)
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").delete_run(before["coevolved/s0"].info.run_id)
    tally = Tracker(folder, params).sync()
    again = [key for key in before if key.startswith("coevolved/s0")]
    assert sorted(tally.created) == sorted(again)
    after = runs(folder)  # each there once
    assert after.keys() == before.keys()
    lost = {before[key].info.run_id for key in again if "/r" in key}
    assert {run.info.run_id for run in superseded(folder)} == lost
    assert {run.data.tags[BY] for run in superseded(folder)} == {after["coevolved/s0"].info.run_id}
    assert str(Tracker(folder, params).sync()).startswith("0 created, 0 superseded")


def test_of_two_rounds_that_two_trackers_began_at_once_one_stays(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    before = runs(folder)
    whole, parent = before["coevolved/s0/r1"], before["coevolved/s0"]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    tags = {name: value for name, value in whole.data.tags.items() if not name.startswith(SHA)}
    other = client.create_run(whole.info.experiment_id, start_time=1, tags=tags).info.run_id  # found last
    assert client.get_run(other).data.tags[PARENT] == parent.info.run_id
    Tracker(folder, params).sync()
    after = runs(folder)  # each there once
    assert {key: run.info.run_id for key, run in after.items()} == {key: run.info.run_id for key, run in before.items()}
    assert [run.info.run_id for run in superseded(folder)] == [other]


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


def test_parameters_are_the_artifacts_and_not_those_of_the_moment(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    before = {key: run.info.run_id for key, run in runs(folder).items()}
    was = (str(params.policy.learning_rate), str(params.decoder.steps))
    params = edit(folder, "policy", learning_rate=0.5)
    tally = Tracker(folder, params).sync()
    assert not tally.created and not tally.superseded and not tally.extended
    assert {key: run.info.run_id for key, run in runs(folder).items()} == before
    for key in ("coevolved/s0", "coevolved/s0/r1"):
        found = runs(folder)[key].data.params
        assert (found["policy.learning_rate"], found["decoder.steps"]) == was
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


@pytest.mark.parametrize("content", [b"", b"\xf5\x80", b"[1]"])
def test_a_project_whose_word_is_damaged_takes_a_new_one_and_finds_its_runs(
    project: tuple[Path, Params], content: bytes
) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    before = {key: run.info.run_id for key, run in runs(folder).items()}
    word = folder / ".rank-e" / "project"
    word.write_bytes(content)  # as a kill or a rotten disk leaves it
    tally = Tracker(folder, params).sync()
    assert re.fullmatch("[0-9a-f]{32}", word.read_text())
    assert not tally.created and {key: run.info.run_id for key, run in runs(folder).items()} == before


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
