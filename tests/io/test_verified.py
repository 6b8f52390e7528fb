"""Hashes of weights, compared once; files that carry their own."""

import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from rank_e.errors import RankEError
from rank_e.io import verified
from rank_e.io.archives import contents_of
from rank_e.io.files import sha256_of
from rank_e.io.sealed import SealError, read_json, read_tensors, write_json, write_tensors
from rank_e.io.verified import Verified
from rank_e.shapes.backbone import ShapesBackbone, load_tensors

ROOT = Path(__file__).parents[2]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_findings_outlive_the_process_and_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(verified, "contents_of", lambda path: hashed.append(path) or contents_of(path))
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    right = sha256_of(file)

    def fresh() -> Verified:
        found = Verified()
        found.keep_in(tmp_path / "kept")
        return found

    assert fresh().holds(file, right) and fresh().holds(file, right)
    assert len(hashed) == 1
    assert not fresh().holds(file, "0" * 64)
    flip(file, 0)
    assert not fresh().holds(file, right) and not fresh().holds(file, right)
    flip(file, 0)
    assert fresh().holds(file, right)


@pytest.mark.parametrize("name", ["policy", "tokenizer", "reward", "evaluator", "text"])
def test_weights_that_are_not_those_recorded_are_refused_by_name(tmp_path: Path, name: str) -> None:
    base = Path(shutil.copytree(ROOT / "assets" / "shapes", tmp_path / "base"))
    load_tensors(base, name)
    flip(base / f"{name}.safetensors", -1)
    with pytest.raises(RankEError, match=rf"{name}.safetensors is not what base.json recorded; ") as caught:
        load_tensors(base, name)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(RankEError, match=rf"backbone.base: .*{name}.safetensors is not what base.json recorded"):
        ShapesBackbone(base, torch.device("cpu"), torch.float32)


def test_sealed_files_come_back_or_are_refused(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).t(), "b": torch.tensor(1.5, dtype=torch.bfloat16), "c": torch.ones(0)}
    write_tensors(tensors, {"next": 3}, tmp_path / "state")
    found, value = read_tensors(tmp_path / "state")
    assert value == {"next": 3} and found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    write_json([{"name": "x"}], tmp_path / "json")
    assert read_json(tmp_path / "json") == [{"name": "x"}]
    for name, read in (("state", read_tensors), ("json", read_json)):
        path = tmp_path / name
        whole = path.read_bytes()
        for place in range(len(whole)):
            flip(path, place)
            try:
                again = read(path)
            except SealError as error:
                assert str(error) == f"{path} is damaged"
            else:  # a space of the header, say: what is read is still what was written
                assert again[1] == value if name == "state" else again == [{"name": "x"}]
                assert name == "json" or all(torch.equal(again[0][key], tensors[key]) for key in tensors)
            path.write_bytes(whole)
        path.write_bytes(whole[:-1])
        with pytest.raises(SealError):
            read(path)


def test_a_file_that_is_read_ahead_is_read_once_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, may = [], threading.Event()

    def slow(path: Path):
        assert may.wait(10)
        hashed.append(path)
        return contents_of(path)

    monkeypatch.setattr(verified, "contents_of", slow)
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(file.name.encode())
    found = Verified()
    for file in (*files, *files):
        found.ahead(file)
    assert not hashed
    may.set()
    assert all(found.holds(file, sha256_of(file)) for file in (*files, *files))
    found.ahead(files[0])
    assert sorted(hashed) == files
    files[0].write_bytes(b"another")  # what was read ahead is of the file as it was
    assert found.holds(files[0], sha256_of(files[0])) and len(hashed) == 3


def test_what_goes_wrong_ahead_is_said_where_the_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path):
        raise OSError("no such device")

    monkeypatch.setattr(verified, "contents_of", broken)
    file = tmp_path / "a"
    file.write_bytes(b"a")
    found = Verified()
    found.ahead(file)
    with pytest.raises(OSError, match="no such device"):
        found.holds(file, "0" * 64)


def test_what_was_just_read_back_is_not_read_again_unless_it_is_fresh(tmp_path: Path) -> None:
    file, found = tmp_path / "a", Verified()
    file.write_bytes(b"a")
    found.found(file, "0" * 64)
    assert not found.holds(file, "0" * 64) and found.holds(file, sha256_of(file))  # as new as this it is read
    os.utime(file, (0, 0))
    found.found(file, "1" * 64)
    assert found.holds(file, "1" * 64)
    file.write_bytes(b"b")
    assert not found.holds(file, "1" * 64)
