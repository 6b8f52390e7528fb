"""base.json: what a base folder says of itself, and one line for each way in which that can be wrong."""

import json
from pathlib import Path

import pytest

from rank_e.errors import RankEError
from rank_e.io.files import sha256_of
from rank_e.io.manifest import Format, parse_manifest, read_manifest, size_problems, write_manifest

SOME = Format("some", "make it again")
SIZES = {"origin": {}, "policy": {}, "tokenizer": {}}


def test_a_manifest_knows_its_files(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"1234")
    for _ in range(2):  # written over an older one too: it does not list itself
        write_manifest(tmp_path, SOME, SIZES)
        manifest = read_manifest(tmp_path, SOME)
        assert manifest == SIZES | {"format": "some", "files": {"w": {"sha256": sha256_of(tmp_path / "w"), "bytes": 4}}}
    with pytest.raises(RankEError, match="of format 'some', not 'other'; see there"):
        read_manifest(tmp_path, Format("other", "see there"))


def test_files_that_are_not_whole_are_named(tmp_path: Path) -> None:
    for name in ("v", "w"):
        (tmp_path / name).write_bytes(b"1234")
    write_manifest(tmp_path, SOME, SIZES)
    (tmp_path / "v").unlink()
    (tmp_path / "w").write_bytes(b"123")
    with pytest.raises(RankEError, match=r"^backbone\.base: .*v is missing; make it again$"):
        read_manifest(tmp_path, SOME)
    files = parse_manifest(tmp_path, SOME)["files"]
    missing, short = size_problems(tmp_path, files, "here", SOME.fix)
    assert missing == f"here: {tmp_path / 'v'} is missing; make it again"
    assert short == f"here: {tmp_path / 'w'} has 3 bytes, not 4; make it again"


@pytest.mark.parametrize("content", ["[]", "{", "{}", "3"])
def test_what_is_no_manifest_is_said(tmp_path: Path, content: str) -> None:
    with pytest.raises(RankEError, match=r"base\.json does not exist; make it again"):
        read_manifest(tmp_path, SOME)
    (tmp_path / "base.json").write_text(content)
    with pytest.raises(RankEError, match=r"base\.json is not a base's manifest; make it again"):
        read_manifest(tmp_path, SOME)


def test_no_number_of_a_manifest_may_change(tmp_path: Path) -> None:
    """A folder's hashes say nothing of the sizes that its networks are built with."""
    write_manifest(tmp_path, SOME, SIZES | {"policy": {"n_head": 16, "norm_eps": 1e-05}})
    whole = (tmp_path / "base.json").read_bytes()
    wanted = read_manifest(tmp_path, SOME)
    refused = 0
    for place in range(len(whole)):
        (tmp_path / "base.json").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_manifest(tmp_path, SOME) == wanted  # a space became another sign that means nothing
        except RankEError as error:
            assert str(error).startswith("backbone.base: ") and "base.json" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > len(whole) / 2
    (tmp_path / "base.json").write_bytes(whole.replace(b'"n_head": 16', b'"n_head": 32'))
    with pytest.raises(RankEError, match=r"base\.json is not what was written; make it again$"):
        read_manifest(tmp_path, SOME)


def test_a_folder_of_an_older_version_is_to_be_made_again(tmp_path: Path) -> None:
    write_manifest(tmp_path, SOME, SIZES)
    manifest = json.loads((tmp_path / "base.json").read_text())
    manifest["source"] = manifest.pop("origin")
    (tmp_path / "base.json").write_text(json.dumps(manifest))
    with pytest.raises(RankEError, match=r"base\.json lacks origin: an older version wrote it; make it again"):
        read_manifest(tmp_path, SOME)
