"""What a stage has hashed is recorded as DVC would, without another look at the bytes; what changed since is not."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rank_e.io.files import state_of
from stages.runtime.written import note_md5, noted_md5
from tests.helpers.project import ROOT, dvc, environment

STAGE = """
stages:
  one:
    cmd: {python} make.py
    outs: [artifacts/arm/s0/r1/policy]
"""
MAKE = """
from pathlib import Path
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.written import note_md5
import torch

path = Path("artifacts/arm/s0/r1/policy")
with ArtifactWriter(path, "policy", seed=0, deterministic=True, noted={noted}) as out:
    out.tensors("online", {{"a": torch.arange(1000.0)}})
    out.tensors("ema", {{"a": torch.arange(3.0)}})
    out.json("metrics", {{}})
{after}
"""
COUNTED = """
import sys
from dvc_data.hashfile import hash
from pathlib import Path

read = hash._hash_file

def counted(path, *given, **how):
    if not str(path).startswith("memory:"):  # the folder's listing, which is no file
        print("hashes", Path(path).name)
    return read(path, *given, **how)

hash._hash_file = counted
from pipeline.{module} import main
sys.argv[1:] = ["repro"]
main()
"""
FOLDER = Path("artifacts/arm/s0/r1/policy")
LATER = "file = path / 'ema.safetensors'; file.write_bytes(file.read_bytes()[:-1] + bytes([7]))"


def recorded(folder: Path, module: str, noted: str = "note_md5", after: str = "") -> tuple[list[str], str]:
    """Names of the files that DVC hashed, and dvc.lock."""
    folder.mkdir()
    (folder / "dvc.yaml").write_text(STAGE.format(python=sys.executable))
    (folder / "make.py").write_text(MAKE.format(noted=noted, after=after))
    dvc(folder, "init", "--no-scm", "--quiet")
    given = environment() | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", COUNTED.format(module=module)]
    done = subprocess.run(words, cwd=folder, env=given, check=True, capture_output=True, text=True)
    hashed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("hashes")]
    for file in (folder / FOLDER).iterdir():  # the cache has what the workspace has, under its own hash
        md5 = hashlib.md5(file.read_bytes()).hexdigest()
        assert (folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).read_bytes() == file.read_bytes()
    return sorted(hashed), (folder / "dvc.lock").read_text()


@pytest.mark.parametrize("module", ["dvc_restore", "dvc_command"])
def test_what_is_noted_is_not_hashed_again_and_dvc_lock_is_dvcs_own(tmp_path: Path, module: str) -> None:
    hashed, lock = recorded(tmp_path / "noted", module)
    assert hashed == ["manifest.json", "metrics.json"]
    every, plain = recorded(tmp_path / "plain", module, noted="None")
    assert every == ["ema.safetensors", "manifest.json", "metrics.json", "online.safetensors"] and lock == plain


def test_a_file_that_changed_after_its_note_is_hashed(tmp_path: Path) -> None:
    hashed, _ = recorded(tmp_path / "changed", "dvc_restore", after=LATER)
    assert hashed == ["ema.safetensors", "manifest.json", "metrics.json"]


def test_notes_that_are_absent_damaged_or_outdated_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    file = FOLDER / "online.safetensors"
    file.write_bytes(b"one")
    assert noted_md5(tmp_path, FOLDER) == {}
    state = state_of(file)
    assert state is not None
    note_md5(FOLDER, {file.name: ("0" * 32, state), "gone": ("1" * 32, state)})
    assert noted_md5(tmp_path, FOLDER) == {file.name: "0" * 32}
    (note,) = (tmp_path / ".rank-e/written").iterdir()
    sound = note.read_bytes()
    odd = [{file.name: [md5, *state]} for md5 in (5, None, "../../x", "0" * 31, "G" * 32)]
    odd += [{name: ["0" * 32, *state]} for name in ("n" * 300, "../online.safetensors", "")]
    texts = [b"", b"[", b"[]", b"null", b"{}", b'{"a": 3}', b'{"a": []}', b"\xff", b"[" * 100_000]
    for text in (*texts, *(json.dumps(said).encode() for said in odd)):
        note.write_bytes(text)
        assert noted_md5(tmp_path, FOLDER) == {}
    note.unlink()
    note.parent.rmdir()
    note.parent.write_bytes(b"in the way")
    note_md5(FOLDER, {file.name: ("0" * 32, state)})  # the artifact is as good without
    assert noted_md5(tmp_path, FOLDER) == {}
    note.parent.unlink()
    note.parent.mkdir()
    note.write_bytes(sound)
    status = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert noted_md5(tmp_path, FOLDER) == {file.name: "0" * 32}  # as DVC's own table: size, time and inode decide
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert noted_md5(tmp_path, FOLDER) == {}
