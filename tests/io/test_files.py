"""Files and folders are replaced whole or not at all."""

import os
from pathlib import Path

import pytest

from rank_e.io import files
from rank_e.io.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, sync = tmp_path / "deep" / "a.json", [], files._sync
    monkeypatch.setattr(files, "_sync", lambda item: (sync(item), synced.append((item.name, path.exists()))))
    with replacing(path) as new:
        new.write_text("first")
        assert new.parent == path.parent and not path.exists()
    assert synced == [(new.name, False), ("deep", True)]  # contents before the name, the name before the return
    with replacing(path) as new:
        new.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second" and names(path.parent) == ["a.json"]


def test_an_error_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), replacing(tmp_path / "a") as new:
        new.write_text("half")
        raise KeyError
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass  # nothing was made
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_folder_replaces_a_whole_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with replacing(tmp_path / "a") as new:
            (new / "below").mkdir(parents=True)
            (new / "below" / name).write_text(name)
    assert names(tmp_path / "a" / "below") == ["two"]
    with pytest.raises(KeyError), replacing(tmp_path / "a") as new:
        new.mkdir()
        raise KeyError
    assert names(tmp_path) == ["a"] and names(tmp_path / "a" / "below") == ["two"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_replaced_too(tmp_path: Path, kind: str) -> None:
    process = os.fork()
    if process == 0:
        with replacing(tmp_path / "a") as new:
            if kind == "folder":
                new.mkdir()
                new /= "half"
            new.write_text("half")
            os._exit(9)
    os.waitpid(process, 0)
    assert len(names(tmp_path)) == 1 and ".tmp-" in names(tmp_path)[0]  # as .dvcignore has it
    with replacing(tmp_path / "a") as new:
        new.write_text("whole")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "whole"
