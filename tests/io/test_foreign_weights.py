"""Weights that were damaged on the way, stand for others, or are not weights: one line, never other numbers."""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.serialization import set_crc32_options

from rank_e.errors import RankEError
from rank_e.io import archives, verified
from rank_e.io.checkpoints import CheckpointError, check_shapes, origin_of, read_shards, read_tensors
from rank_e.io.headers import read_header
from rank_e.rewards.base import RewardError
from rank_e.rewards.weights import read_weights


def flip(path: Path, what: bytes) -> None:
    """Change one bit of the bytes `what` in a file."""
    data = bytearray(path.read_bytes())
    data[data.index(what)] ^= 1
    path.write_bytes(data)


def test_an_archive_is_read_against_its_crc(tmp_path: Path) -> None:
    weight = torch.arange(5000.0)
    torch.save({"w": weight}, tmp_path / "a.pt")
    assert torch.equal(read_tensors(tmp_path / "a.pt")["w"], weight)
    flip(tmp_path / "a.pt", weight[1000:1010].numpy().tobytes())  # read before: its new time tells
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged: its member a/data/0 fails the archive's CRC"):
        read_tensors(tmp_path / "a.pt")


def test_an_archive_is_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that no member fits into, and every kind of damage, as zipfile and hashlib find it in two."""
    monkeypatch.setattr(archives, "BLOCK", 61)
    whole = tmp_path / "whole.pt"
    torch.save({"a": torch.arange(40.0), "b": torch.ones(3), "c": torch.zeros(0)}, whole)
    torch.jit.script(torch.nn.Linear(3, 3)).save(str(tmp_path / "script.pt"))  # its code is compressed
    data = whole.read_bytes()
    places = [*range(0, len(data), 41), data.index(torch.ones(3).numpy().tobytes())]
    files = [whole, tmp_path / "script.pt"]
    for place in places:
        files.append(tmp_path / f"{place}.pt")
        files[-1].write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    faults = set()
    for file in files:
        found = archives.contents_of(file)
        assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        try:
            with zipfile.ZipFile(file) as archive:
                member = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError):
            assert (found.fault is None) != archives.is_archive(file)
            with pytest.raises(CheckpointError):
                read_tensors(file)
            continue
        assert found.fault == (member and f"is damaged: its member {member} fails the archive's CRC")
        faults.add(member)
    assert {None, "whole/data/0", "whole/data/1"} <= faults


def test_crc_and_sha256_are_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(verified, "contents_of", lambda path: read.append(path) or archives.contents_of(path))
    torch.save({"w": torch.arange(50.0)}, tmp_path / "a.pt")
    tensors = read_tensors(tmp_path / "a.pt")
    entry = origin_of(tmp_path / "a.pt", tensors)
    assert read == [tmp_path / "a.pt"]
    assert entry["sha256"] == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    save_file({"w": torch.arange(50.0)}, tmp_path / "a.safetensors")
    read_tensors(tmp_path / "a.safetensors")
    assert len(read) == 1  # nobody wants its hash


def test_an_archive_without_checksums_is_read_as_it_is(tmp_path: Path) -> None:
    set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(5.0)}, tmp_path / "a.pt")
    finally:
        set_crc32_options(True)
    assert read_tensors(tmp_path / "a.pt")["w"].tolist() == [0, 1, 2, 3, 4]


def test_a_damaged_torchscript_archive_is_refused(tmp_path: Path) -> None:
    layer = torch.nn.Linear(40, 40)
    torch.jit.script(layer).save(str(tmp_path / "a.pt"))
    assert torch.equal(read_weights(tmp_path / "a.pt")["weight"], layer.weight)
    flip(tmp_path / "a.pt", layer.weight.detach()[7].numpy().tobytes())
    with pytest.raises(RewardError, match=r"a\.pt is damaged: its member a/data/\d fails the archive's CRC"):
        read_weights(tmp_path / "a.pt")


def test_a_compressed_archive_is_never_taken_for_numbers(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(500.0)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    with pytest.raises(CheckpointError, match=r"b\.pt: its member a/data\.pkl is compressed"):
        read_tensors(tmp_path / "b.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors", "a.index.json"])
def test_pointers_and_pages_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 791656\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer, .*`git lfs pull`"):
        read_tensors(tmp_path / name)
    (tmp_path / name).write_text("<!doctype html><html>Access to model is restricted</html>")
    with pytest.raises(CheckpointError, match=rf"{name} is a web page"):
        read_tensors(tmp_path / name)


def test_a_header_larger_than_its_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((2**31).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=r"a\.safetensors is truncated or not safetensors") as caught:
        read_tensors(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_of_a_key_in_two_shards_the_index_decides(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(1)}, tmp_path / "1.safetensors")
    save_file({"a": torch.ones(2), "c": torch.ones(3)}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for place, value in (("1.safetensors", 0.0), ("2.safetensors", 1.0)):
        index.write_text(json.dumps({"weight_map": {"b": "1.safetensors", "a": place, "c": "2.safetensors"}}))
        assert read_tensors(index)["a"].tolist() == [value, value]
        assert [sorted(part) for part in read_shards(index).values()] == (
            [["a", "b"], ["c"]] if value == 0 else [["b"], ["a", "c"]]
        )


@pytest.mark.parametrize(
    "places", [[], 3, {"a": 3}, {"a": "../b.safetensors"}, {"a": "model.index.json"}, {"a": ["x"]}]
)
def test_an_index_that_names_no_shards_is_one_line(tmp_path: Path, places: object) -> None:
    (tmp_path / "model.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=r"model\.index\.json.*; download it again") as caught:
        read_tensors(tmp_path / "model.index.json")
    assert "\n" not in str(caught.value)


def test_errors_name_the_first_five_keys_and_count_the_others() -> None:
    found = {f"text.layers.{n}.weight": torch.zeros(1) for n in range(2000)}
    with pytest.raises(
        CheckpointError, match=r"3 missing: x, y, z; 2000 unexpected: .*4\.weight and 1995 more$"
    ) as caught:
        check_shapes(found, {"x": (1,), "y": (1,), "z": (1,)}, "f.pt")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({0: torch.ones(2)}, "names tensors by 0, which is no text"),
        ({"model": {"a": torch.ones(2), ("b",): torch.ones(2)}}, r"names tensors by \('b',\), which is no text"),
        ({"a": torch.ones(2).to_sparse()}, r"a \(float32, sparse_coo on cpu\)"),
        ({"a": torch.ones(2, device="meta")}, r"a \(float32, strided on meta\)"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, r"a \(complex64, strided"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, r"a \(float8_e4m3fn, strided"),
        ({"a\nb": 1, "c" * 9000: 2}, r"is no state dict \(a\\nb, c{200}\.\.\. not tensors\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_no_model_is_made_of_are_named(tmp_path: Path, state: dict, said: str) -> None:
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"a\.pt .*{said}") as caught:
        read_tensors(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "x"]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32"}}',
    ],
)
def test_a_header_that_is_damaged_is_one_line(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(RankEError, match=r"a\.safetensors is truncated or not safetensors"):
        read_header(path)


def test_an_index_is_read_by_its_own_names_and_names_each_once(tmp_path: Path) -> None:
    """A wrapper's prefix may be all that one shard's names have, and not another's."""
    index = tmp_path / "model.safetensors.index.json"
    save_file({"module.a": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"module.b": torch.ones(2), "c": torch.ones(3)}, tmp_path / "2.safetensors")
    places = {"module.a": "1.safetensors", "module.b": "2.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    assert {name: len(tensor) for name, tensor in read_tensors(index).items()} == {"a": 1, "b": 2}
    index.write_text(json.dumps({"weight_map": {**places, "c": "2.safetensors"}}))
    assert {name: len(tensor) for name, tensor in read_tensors(index).items()} == {"module.a": 1, "module.b": 2, "c": 3}
    index.write_text('{"weight_map": {"module.a": "1.safetensors", "module.a": "2.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"no `weight_map` \(key 'module\.a' stands there twice\)"):
        read_tensors(index)
