"""Stage decoder: when an arm's decoder is handed on, and when it is trained."""

from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from rank_e.config import parse
from rank_e.config.profiles import resolve
from stages import decoder
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import read_artifact
from stages.runtime.stage import Stage

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("overrides", "number", "trained"),
    [
        ({}, 1, True),
        ({"first_round": 2}, 1, False),
        ({"first_round": 2}, 2, True),
        ({"train": False}, 2, False),
    ],
)
def test_a_decoder_is_trained_from_its_first_round_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, object], number: int, trained: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe", pure=True).load(resolve(ROOT / "profiles/tiny.yaml"))
    data["arms"]["coevolved"]["decoder"] = overrides
    stage = Stage("decoder", parse(data), arm="coevolved", seed=0, round=number)
    weights = {"w": torch.randn(3)}
    with ArtifactWriter(stage.path("decoder", round=number - 1), "decoder", seed=0, deterministic=True) as out:
        out.tensors("online", weights)
        out.tensors("ema", weights)
        out.json("progress", {"steps": 7})
    asked = []
    monkeypatch.setattr(decoder, "train_decoder", lambda stage, previous: asked.append(previous))
    decoder.run(stage)
    assert bool(asked) == trained
    if not trained:
        written = read_artifact(stage.path("decoder"), "decoder")
        assert torch.equal(written.tensors("ema")["w"], weights["w"]) and written.json("progress") == {"steps": 7}
        assert len(written.table("log")) == 0
