"""Reading checkpoints: every official layout, and one line for everything that is not one."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rank_e.io.checkpoints import (
    CheckpointError,
    check_finite,
    check_shapes,
    check_space,
    dtypes_of,
    origin_of,
    read_tensors,
    save_tensors,
    save_torch,
    write_folder,
)
from rank_e.io.files import plain
from rank_e.io.foreign import check_floating
from rank_e.seeds import generator


def state() -> dict[str, Tensor]:
    draw = generator(0, "state")
    return {
        "a.weight": torch.randn(3, 4, generator=draw),
        "a.bias": torch.randn(4, generator=draw).bfloat16(),
        "b": torch.arange(5),
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected) or sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    "layout",
    [
        lambda s: s,
        OrderedDict,
        lambda s: {"model": s, "steps": 7, "optimizer": {"state": {}}},
        lambda s: {"module": s},
        lambda s: {"state_dict": s, "epoch": 1},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_layout_of_a_pt_reads_the_same(tmp_path: Path, layout, legacy: bool) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.pt"
    torch.save(layout(state()), path, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(path)
    assert_same(found, state())
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("name", ["m.pth", "m.bin", "m.ckpt"])
def test_other_suffixes(tmp_path: Path, name: str) -> None:
    torch.save(state(), tmp_path / name)
    assert_same(read_tensors(tmp_path / name), state())


def test_safetensors_and_shards(tmp_path: Path) -> None:
    whole = state()
    save_file({"a.weight": whole["a.weight"]}, tmp_path / "model-1.safetensors")
    torch.save({name: whole[name] for name in ("a.bias", "b")}, tmp_path / "model-2.bin")
    places = {"a.weight": "model-1.safetensors", "a.bias": "model-2.bin", "b": "model-2.bin"}
    index = tmp_path / "model.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(read_tensors(index), whole)
    assert_same(read_tensors(tmp_path / "model-1.safetensors"), {"a.weight": whole["a.weight"]})
    index.write_text(json.dumps({"weight_map": places | {"c": "model-2.bin"}}))
    with pytest.raises(CheckpointError, match=r"model-2\.bin lacks c; download"):
        read_tensors(index)
    index.write_text(json.dumps({"weight_map": {"a.weight": "../model-1.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file beside the index"):
        read_tensors(index)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="no `weight_map`"):
        read_tensors(index)


def test_a_prefix_stays_when_one_name_lacks_it(tmp_path: Path) -> None:
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    torch.save(mixed, tmp_path / "m.pt")
    assert sorted(read_tensors(tmp_path / "m.pt")) == ["b", "module.a"]


class Wicked:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Wicked.run, ("x",))

    @staticmethod
    def run(_: str) -> None:
        Wicked.ran = True


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_more_than_tensors_is_refused_by_name(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "trained.pt"
    torch.save({"model": state(), "args": argparse.Namespace(lr=1)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"trained\.pt is refused: its pickle wants argparse\.Namespace") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    torch.save({"model": state(), "extra": Wicked()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"trained\.pt is refused"):
        read_tensors(path)
    assert not Wicked.ran


def broken_files(folder: Path) -> dict[str, str]:
    """Files that cannot be read, each with what its error says."""
    torch.save({"model": {"w": torch.zeros(5000)}}, folder / "whole.pt")
    torch.save({"w": torch.zeros(5000)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file({"w": torch.zeros(5000)}, folder / "whole.safetensors")
    zipped, legacy = (folder / "whole.pt").read_bytes(), (folder / "legacy.pt").read_bytes()
    safe = (folder / "whole.safetensors").read_bytes()
    contents = {
        "half.pt": zipped[: len(zipped) // 2],
        "start.pt": zipped[:10],
        "legacy_half.pt": legacy[: len(legacy) // 2],
        "legacy_head.pt": legacy[:20],
        "empty.pt": b"",
        "html.bin": b"<html>Not found</html>",
        "half.safetensors": safe[: len(safe) // 2],
        "empty.safetensors": b"",
        "html.safetensors": b"<html>Not found, sorry</html>",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save([torch.zeros(1)], folder / "list.pt")
    torch.save({"w": torch.zeros(1), "n": 3}, folder / "mixed.pt")
    torch.save({}, folder / "none.pt")
    torch.save({"model": {}}, folder / "hollow.pt")
    (folder / "weights.h5").write_bytes(b"x")
    (folder / "folder.pt").mkdir()
    return dict.fromkeys(contents, "download it again") | {
        "list.pt": "no state dict (a list)",
        "mixed.pt": "no state dict (n not tensors)",
        "none.pt": "holds no tensors",
        "hollow.pt": "holds no tensors",
        "weights.h5": "a checkpoint ends in",
        "folder.pt": "not a file",
        "absent.pt": "does not exist",
    }


def test_everything_else_is_a_one_line_error_that_names_the_file(tmp_path: Path) -> None:
    for name, expected in broken_files(tmp_path).items():
        with pytest.raises(CheckpointError) as error:
            read_tensors(tmp_path / name)
        assert expected in str(error.value) and name in str(error.value) and "\n" not in str(error.value), name


def test_shapes_name_every_difference() -> None:
    found = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(1)}
    check_shapes(found, {"a": (2,), "b": [3], "c": (1,), "d": (1,)}, "f.pt")
    with pytest.raises(CheckpointError) as error:
        check_shapes(found, {"a": (2, 2), "b": (3,), "x": (1,), "y": (1,)}, "f.pt")
    text = str(error.value)
    assert text.startswith("f.pt does not fit") and "\n" not in text
    assert (
        "2 missing: x, y" in text and "2 unexpected: c, d" in text and "1 of another shape: a [2], not [2, 2]" in text
    )


def test_weights_of_whole_numbers_are_not_weights() -> None:
    found = {"a": torch.ones(2), "b": torch.ones(3, dtype=torch.int32)}
    check_floating({"a": found["a"]}, "f.pt")
    with pytest.raises(CheckpointError, match=r"f\.pt holds whole numbers in b; give"):
        check_floating(found, "f.pt")


def test_values_that_are_not_finite_are_named() -> None:
    good = state()
    check_finite(good, "f.pt")
    with pytest.raises(CheckpointError, match=r"f\.pt .* in p, q;"):
        check_finite(good | {"p": torch.tensor([1.0, torch.nan]), "q": torch.tensor(torch.inf)}, "f.pt")


def test_the_origin_of_tensors_is_described(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    entry = origin_of(tmp_path / "x", state())
    assert entry == {
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "bytes": 3,
        "keys": 3,
        "dtype": {"bfloat16": 1, "float32": 1, "int64": 1},
    }
    assert dtypes_of({}) == {}


def test_views_are_saved_without_what_they_are_views_of(tmp_path: Path) -> None:
    large = torch.randn(1000, 10, generator=generator(0, "large"))
    views = {"row": large[3], "same": large[3], "turned": large[:4].T}
    assert len({tensor.untyped_storage().data_ptr() for tensor in plain(views).values()}) == 3
    save_torch(views, tmp_path / "m.pt")
    save_tensors(views, tmp_path / "m.safetensors")
    assert (tmp_path / "m.pt").stat().st_size < 5000
    for name in ("m.pt", "m.safetensors"):
        assert_same(read_tensors(tmp_path / name), views)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "base"
    with pytest.raises(KeyError), write_folder(target) as folder:
        (folder / "half").write_text("x")
        raise KeyError
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "deep" / ".base.tmp-new").mkdir()  # of a writer that was killed
    target.mkdir()
    with write_folder(target) as folder:
        (folder / "whole").write_text("x")
        assert list(target.iterdir()) == []
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["base"]
    assert (target / "whole").read_text() == "x"
    with pytest.raises(CheckpointError, match="exists already"), write_folder(target):
        pytest.fail("the block must not run")
    assert (target / "whole").read_text() == "x"
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be made"), write_folder(tmp_path / "file" / "deep" / "base"):
        pytest.fail("the block must not run")


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    check_space(tmp_path / "a" / "b", 1)
    with pytest.raises(CheckpointError, match=r"needs 1,000,000,000\.0 GB"):
        check_space(tmp_path / "a" / "b", 10**18)
    with pytest.raises(CheckpointError, match=r"/proc keeps no files; name a folder on a disk"):
        check_space("/proc/base", 1)
