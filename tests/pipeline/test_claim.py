"""`rank-e claim`: what is written of a finished run, and of arms that it did not have."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.claim import write_claim
from rank_e.errors import RankEError
from tests.helpers.fake_artifacts import write_project
from tests.helpers.project import ROOT


def test_ablations_that_were_not_run_are_null_and_nothing_is_compared_with_itself(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0, 1], rounds=2)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "out").mkdir()
    for name in ("claim", "ablations"):
        said = write_claim(params, tmp_path, tmp_path / "out", name)
        assert said.startswith(f"{tmp_path / 'out' / name}.json: 2 seeds, bar ")
    claim, ablations = (json.loads((tmp_path / f"out/{name}.json").read_text()) for name in ("claim", "ablations"))
    assert set(claim["arms"]) == {"base", "frozen", "coevolved"} and None not in claim["paired"].values()
    assert ablations["arms"]["frozen"] == claim["arms"]["frozen"]
    null = {name for name, value in ablations["arms"].items() if value is None}
    assert {"uniform", "shuffled", "post_hoc", "keep_1"} <= null and not null & {"frozen", "coevolved"}
    assert {name for name, value in ablations["paired"].items() if value is None} == {f"{arm}-frozen" for arm in null}


def test_a_claim_of_more_seeds_is_not_replaced(tmp_path: Path) -> None:
    params = write_project(tmp_path, seeds=[0, 1], rounds=1)
    there = tmp_path / "claim.json"
    there.write_text(json.dumps({"seeds": [0, 1, 2]}))
    with pytest.raises(RankEError, match="is of 3 seeds, this run of 2 seeds: give another folder by --to"):
        write_claim(params, tmp_path, tmp_path, "claim")
    assert json.loads(there.read_text()) == {"seeds": [0, 1, 2]}
    for text in (json.dumps({"seeds": [5]}), "no JSON"):
        there.write_text(text)
        assert "2 seeds" in write_claim(params, tmp_path, tmp_path, "claim")
    for name in ("../claim", "a/b", ""):
        with pytest.raises(RankEError, match="is no name of a file"):
            write_claim(params, tmp_path, tmp_path, name)
