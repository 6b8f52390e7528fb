"""`make base` at its smallest: every network from nothing by its DVC stage, packed, measured and compared."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rank_e.shapes.measure import TOLERANCE
from stages.runtime.artifacts import read_artifact
from tests.helpers.project import ROOT, dvc, environment

pytestmark = pytest.mark.slow
NETWORKS = {"text", "reward", "evaluator", "tokenizer", "policy"}  # files of the base
TRAINED = {*NETWORKS, "decoder"}


def base(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "base.train", what]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def test_a_base_is_trained_from_nothing_and_compared_with_the_shipped_one(tmp_path: Path) -> None:
    for name in ("rank_e", "stages", "pipeline", "assets", "base"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__", "trained", "dvc.lock", "cache", "tmp"),
        )
    path = tmp_path / "base/params.yaml"
    params = yaml.safe_load(path.read_text())
    for network in TRAINED:
        params[network] |= {"steps": 3, "batch": 8, "images": 90}
    path.write_text(yaml.safe_dump(params))
    dvc(tmp_path / "base", "config", "core.no_scm", "true")
    dvc(tmp_path, "--cd", "base", "repro")

    packed = read_artifact(tmp_path / "base/trained/packed", "packed")
    packed.verify()
    made = packed.json("base")
    assert made["params"] == params | {"tokenizer_size": made["params"]["tokenizer_size"]}
    assert made["metrics"].keys() == TOLERANCE.keys()
    shipped = json.loads((ROOT / "assets/shapes/base.json").read_text())
    assert {key: made[key] for key in ("policy", "tokenizer")} == {key: shipped[key] for key in ("policy", "tokenizer")}
    for network in NETWORKS:
        own, other = (folder / f"{network}.safetensors" for folder in (packed.path, ROOT / "assets/shapes"))
        assert abs(own.stat().st_size - other.stat().st_size) < 200  # the shipped one's sizes, other weights
        assert own.read_bytes() != other.read_bytes()

    before, after = (
        read_artifact(tmp_path / f"base/trained/{name}", name).tensors("weights") for name in ("tokenizer", "decoder")
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(("decoder.", "post_quant_conv."))}
    shipped_codes = packed.tensors("tokenizer")
    assert all(torch.equal(value.half(), shipped_codes[name]) for name, value in after.items())

    compared = base(tmp_path, "compare")
    assert compared.returncode == 1 and "disagrees with the shipped one" in compared.stderr
    assert compared.stdout.count("NO") >= 4  # three steps teach nothing
    assert "up to date" in dvc(tmp_path, "--cd", "base", "status")

    # Beside itself it agrees.
    (tmp_path / "assets/shapes/base.json").write_text(json.dumps(made))
    agreed = base(tmp_path, "compare")
    assert agreed.returncode == 0 and "NO" not in agreed.stdout
