"""Artifacts: whole or absent, the same bytes from the same contents, damage found by name."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch

from rank_e.io import verified
from rank_e.io.archives import contents_of
from rank_e.io.files import State, state_of
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import ArtifactError, manifest_sha256, read_artifact
from stages.runtime.manifests import cell_at
from stages.runtime.stage import ARGUMENTS, artifact_path


def write(path: Path, value: float = 1.0, inputs: dict[str, Path] | None = None) -> Path:
    with ArtifactWriter(path, "policy", seed=3, deterministic=True, inputs=inputs or {}) as out:
        out.tensors("online", {"b": torch.arange(6.0).view(2, 3).t(), "a": torch.tensor([1, 2])})
        out.table("log", pd.DataFrame({"step": [0, 1], "loss": [value, float("nan")], "name": ["x", "y"]}))
        out.json("metrics", {"z": value, "a": [1, None, "text"]})
        out.file("note.txt").write_text("by hand")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    artifact = read_artifact(write(tmp_path / "r1" / "policy"), "policy")
    assert torch.equal(artifact.tensors("online")["b"], torch.arange(6.0).view(2, 3).t())
    assert artifact.arrays("online")["a"].tolist() == [1, 2]
    assert artifact.table("log")["step"].tolist() == [0, 1]
    assert artifact.json("metrics") == {"a": [1, None, "text"], "z": 1.0}
    assert artifact.manifest["files"]["online.safetensors"]["shapes"] == {"a": [2], "b": [3, 2]}
    assert artifact.manifest["files"]["log.parquet"]["rows"] == 2
    artifact.verify()
    assert [path.name for path in (tmp_path / "r1").iterdir()] == ["policy"]


def test_same_contents_same_bytes_and_inputs_are_chained(tmp_path: Path) -> None:
    first, second = write(tmp_path / "one"), write(tmp_path / "two")
    assert contents(first) == contents(second)
    child = write(tmp_path / "child", inputs={"previous": first})
    assert json.loads((child / "manifest.json").read_text())["inputs"] == {
        "previous": {"path": first.as_posix(), "sha256": manifest_sha256(second)}
    }
    assert manifest_sha256(write(tmp_path / "three", 2.0)) != manifest_sha256(first)


def test_a_manifest_says_with_which_params(tmp_path: Path) -> None:
    for params in ({"policy": {"learning_rate": 1e-4, "betas": [0.9, 0.95]}}, {"decoder": {"train": False}}):
        with ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True, params=params) as out:
            out.json("metrics", {})
        assert read_artifact(tmp_path / "a", "policy").manifest["params"] == params


def test_nothing_appears_where_the_check_fails(tmp_path: Path) -> None:
    def check() -> None:
        assert (tmp_path / ".a.tmp-new" / "manifest.json").is_file()  # the last thing before the artifact appears
        raise RuntimeError

    with (
        pytest.raises(RuntimeError),
        ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True, check=check) as out,
    ):
        out.json("metrics", {})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_says_whether_the_algorithms_were_deterministic(tmp_path: Path) -> None:
    for deterministic in (True, False):
        with ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=deterministic) as out:
            out.json("metrics", {})
        assert read_artifact(tmp_path / "a", "policy").manifest["deterministic"] is deterministic


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    with ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True) as out:
        out.tensors("online", {"one": weight, "two": weight, "part": weight[1:3]})
    tensors = read_artifact(tmp_path / "a", "policy").tensors("online")
    assert tensors["two"].tolist() == [0, 1, 2, 3] and tensors["part"].tolist() == [1, 2]


def test_an_exception_leaves_nothing_and_keeps_the_older_artifact(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True) as out:
        out.json("metrics", {})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    before = contents(write(tmp_path / "a"))
    with pytest.raises(ArtifactError), ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True) as out:
        out.json("metrics", {"fd": float("inf")})
    assert contents(tmp_path / "a") == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_writer_leaves_only_what_the_next_one_removes(tmp_path: Path) -> None:
    process = os.fork()
    if process == 0:
        with ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True) as out:
            out.json("metrics", {})
            os._exit(9)
    os.waitpid(process, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".a.tmp-new"]
    with pytest.raises(ArtifactError, match=r"a does not exist: run `dvc repro`$"):
        read_artifact(tmp_path / "a", "policy")
    write(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_rewriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True) as out:
        out.json("metrics", {})
    assert sorted(contents(tmp_path / "a")) == ["manifest.json", "metrics.json"]


def test_what_json_cannot_hold_is_named(tmp_path: Path) -> None:
    for value, place in [({"fd": {"low": float("nan")}}, "metrics.fd.low = nan"), ([{1, 2}], "metrics.0")]:
        with (
            pytest.raises(ArtifactError, match=place),
            ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True) as out,
        ):
            out.json("metrics", value)


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    artifact = read_artifact(path, "policy")
    with pytest.raises(ArtifactError, match=r"a holds no ema.safetensors, only log.parquet, .*dvc repro"):
        artifact.tensors("ema")
    with pytest.raises(ArtifactError, match="is of kind 'policy', wanted 'decoder'"):
        read_artifact(path, "decoder")
    with pytest.raises(ArtifactError, match=r"missing/manifest.json does not exist: run `dvc repro`$"):
        write(tmp_path / "b", inputs={"prompts": tmp_path / "missing"})

    (path / "note.txt").write_text("by Hand")
    with pytest.raises(ArtifactError, match=r"note.txt is not what was written"):
        read_artifact(path, "policy").verify()
    (path / "note.txt").write_text("longer than it was")
    with pytest.raises(ArtifactError, match=r"note.txt has 18 bytes, not 7"):
        read_artifact(path, "policy")
    (path / "note.txt").unlink()
    with pytest.raises(ArtifactError, match=r"note.txt is missing"):
        read_artifact(path, "policy")
    for text in ("[]", '{"schema_version": 3, "kind": "policy"}'):
        (path / "manifest.json").write_text(text)
        with pytest.raises(ArtifactError, match="is no manifest of an artifact: run `rank-e repair`, then `dvc repro`"):
            read_artifact(path, "policy")
    (path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="is not JSON"):
        read_artifact(path, "policy")


@pytest.mark.parametrize("name", ["manifest.json", "../outside.txt", "folder/file.txt"])
def test_files_stay_inside_the_artifact(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(ArtifactError, match="not a name"),
        ArtifactWriter(tmp_path / "a", "x", seed=0, deterministic=True) as out,
    ):
        out.file(name)


def test_what_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        with (
            pytest.raises(ArtifactError, match=r"a/online.safetensors cannot hold w: numbers must be finite"),
            ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True) as out,
        ):
            out.tensors("online", {"v": torch.ones(2), "w": torch.tensor([1.0, value]), "n": torch.tensor([1])})
    with (
        pytest.raises(ArtifactError, match=r"a/log.parquet cannot hold loss: numbers must be finite"),
        ArtifactWriter(tmp_path / "a", "policy", seed=0, deterministic=True) as out,
    ):
        out.table("log", pd.DataFrame({"step": [0], "loss": [float("inf")], "name": ["x"]}))
    assert list(tmp_path.iterdir()) == []


def test_a_place_names_its_cell() -> None:
    for kind, arguments in ARGUMENTS.items():
        if kind not in ("start", "code", "report"):
            cell = {"arm": "sft", "seed": 12, "round": 3}
            wanted = {name: value for name, value in cell.items() if name in arguments}
            for project in (Path(), Path("/home/artifacts/of")):
                assert cell_at(project / artifact_path(kind, **cell)) == wanted  # type: ignore[arg-type]


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(verified, "contents_of", lambda path: hashed.append(path) or contents_of(path))
    artifact = read_artifact(write(tmp_path / "a"), "policy")
    for _ in range(3):
        artifact.tensors("online")
    assert len(hashed) == 1
    os.utime(tmp_path / "a" / "online.safetensors", ns=(1, 1))
    artifact.tensors("online")
    assert len(hashed) == 2


def test_the_md5_of_tensors_is_handed_over_when_the_artifact_is_there(tmp_path: Path) -> None:
    seen = {}

    def noted(path: Path, found: Mapping[str, tuple[str, State]]) -> None:
        assert (path / "manifest.json").is_file()
        assert all(state == state_of(path / name) for name, (_, state) in found.items())
        seen.update({name: md5 for name, (md5, _) in found.items()})

    place = tmp_path / "a"
    with ArtifactWriter(place, "policy", seed=0, deterministic=True, noted=noted) as out:
        out.tensors("online", {"a": torch.arange(6.0)})
        out.json("metrics", {})
    assert seen == {"online.safetensors": hashlib.md5((place / "online.safetensors").read_bytes()).hexdigest()}
    with (
        pytest.raises(KeyError),
        ArtifactWriter(tmp_path / "b", "policy", seed=0, deterministic=True, noted=noted) as out,
    ):
        out.tensors("other", {"a": torch.arange(6.0)})
        raise KeyError
    assert len(seen) == 1


def test_what_a_process_has_written_it_does_not_hash_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(verified, "contents_of", lambda path: hashed.append(path.name) or contents_of(path))
    monkeypatch.setattr(verified, "FRESH", -1.0)  # as if the files had been written some time ago
    artifact = read_artifact(write(tmp_path / "a"), "policy")
    artifact.tensors("online")
    assert hashed == []
    artifact.table("log")
    assert hashed == ["log.parquet"]
    file = tmp_path / "a" / "online.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="is not what was written"):
        artifact.tensors("online")
