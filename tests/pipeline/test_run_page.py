"""What Prefect's page of a run says: the method's words, a round's numbers, and how long the rest takes."""

import json
from pathlib import Path

import pytest

from pipeline.graph import load_graph
from pipeline.profile import ProfileName, name_of, profile_names, write_profile
from pipeline.run_page import recorded_seconds, remaining, round_rows, show_round, title
from pipeline.tracking.stamp import write_links
from rank_e.config import Params
from stages.report.data import load_results

ROOT = Path(__file__).parents[2]


def test_titles_read_as_the_method_and_differ() -> None:
    titles = {node.label: title(node) for node in load_graph(ROOT)}
    assert titles["decoder coevolved s0 r3"] == "coevolved · s0 · round 3 · decoder update"
    assert titles["policy frozen s0 r1"] == "frozen · s0 · round 1 · policy update"
    assert titles["prompts s0 r2"] == "s0 · round 2 · prompts"
    assert titles["start frozen s0"] == "frozen · s0 · start"
    assert titles["baseline"] == "evaluation of the base"
    assert len(set(titles.values())) == len(titles)


def test_the_rest_takes_as_long_as_stages_of_its_kind_did() -> None:
    seconds = {("policy", "frozen"): 60.0, ("policy", "coevolved"): 30.0, ("reference", None): 5.0}
    left = {("policy", "frozen"): 3, ("policy", "coevolved"): 2, ("reference", None): 0, ("report", None): 0}
    assert remaining(left, seconds, 2) == "about 2 minutes left"  # (3 x 60 + 2 x 30) / 2
    assert remaining({("reference", None): 1}, seconds, 1) == "about 5 seconds left"
    said = remaining({("decoder", "frozen"): 1}, seconds, 1)
    assert said == "how long the rest takes is not known before the first decoder frozen"


def test_seconds_are_those_of_the_stage_that_ended_last(tmp_path: Path) -> None:
    folder = tmp_path / ".rank-e" / "usage"
    folder.mkdir(parents=True)
    for name, ended, seconds in (
        ("policy-frozen-s0-r1", 20.0, 7.0),
        ("policy-frozen-s0-r2", 10.0, 9.0),
        ("sft_evaluation-s0", 1.0, 3.0),
        ("reference", 1.0, 2.0),
    ):
        (folder / f"{name}.json").write_text(json.dumps({"seconds": seconds, "ended": ended}))
    (folder / "decoder-frozen-s0-r1.json").write_text('{"seco')  # a kill
    assert recorded_seconds(tmp_path) == {
        ("policy", "frozen"): 7.0,
        ("sft_evaluation", None): 3.0,
        ("reference", None): 2.0,
    }


def test_a_rounds_numbers_are_those_of_its_artifacts(project: tuple[Path, Params]) -> None:
    folder, params = project
    rows = {row["metric"]: row for row in round_rows(folder, "coevolved", 0, 2)}
    results = load_results(params, folder)
    for metric in results.metrics:
        value = results.value("coevolved", 0, 2, metric.key)
        assert value is not None and metric.text(value).startswith(rows[f"{metric.name} {metric.arrow}"]["value"][:4])
    assert rows["ranking: reward mean"]["value"] == f"{results.training['coevolved', 0, 2]['reward_mean']:.4g}"
    assert rows["decoder: gan"]["value"] == "0.2" and " to " in rows["FD ↓"]["95 %"]
    assert round_rows(folder, "coevolved", 0, 9) == []


def test_a_rounds_table_names_its_run_in_mlflow_once_that_is_known(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = project
    made: list[dict] = []
    monkeypatch.setattr("pipeline.run_page.create_table_artifact", lambda rows, **given: made.append(given))
    assert not show_round(folder, "coevolved", 0, 1)
    write_links(folder, {"coevolved/s0/r1": "http://here/#/experiments/1/runs/a"})
    assert show_round(folder, "coevolved", 0, 1)
    assert [item["key"] for item in made] == ["coevolved-s0-round-1"] * 2
    assert [item["description"] for item in made] == [
        "coevolved · s0 · round 1",
        "coevolved · s0 · round 1; [its run in MLflow](http://here/#/experiments/1/runs/a)",
    ]
    assert not show_round(folder, "a_b", 0, 9) and len(made) == 2  # nothing to show


def test_the_profile_is_named_as_long_as_params_are_its(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    for name in ("shapes", "tiny"):
        (tmp_path / f"profiles/{name}.yaml").write_bytes((ROOT / f"profiles/{name}.yaml").read_bytes())
    assert write_profile(tmp_path, "shapes") == "params.yaml is now profiles/shapes.yaml"
    assert write_profile(tmp_path, "tiny") == "params.yaml is now profiles/tiny.yaml" and name_of(tmp_path) == "tiny"
    edited = (tmp_path / "params.yaml").read_text().replace("clip_epsilon: 0.2", "clip_epsilon: 0.3")
    (tmp_path / "params.yaml").write_text(edited)
    assert name_of(tmp_path) == "params.yaml"
    said = write_profile(tmp_path, "shapes").partition("; the edited one is kept as ")
    assert said[0] == "params.yaml is now profiles/shapes.yaml" and (tmp_path / said[2]).read_text() == edited


def test_the_form_offers_the_projects_profiles() -> None:
    (field,) = ProfileName.__metadata__  # type: ignore[attr-defined]
    assert field.json_schema_extra == {"enum": profile_names(ROOT)} and "shapes" in profile_names(ROOT)
