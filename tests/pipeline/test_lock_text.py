"""What is wrong with dvc.lock is said by its line, by whoever would read it."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.collecting import collect_rounds
from pipeline.lock_text import FIX, lock_problem
from rank_e.errors import RankEError
from tests.helpers.fake_artifacts import write_project

WHOLE = """schema: '2.0'
stages:
  policy@frozen-0-round0:
    cmd: python policy.py
    deps:
    - path: in
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 3
    params:
      params.yaml:
        ranking.rewards:
          mine:
            md5: 12345
            hash: foo
    outs:
    - path: out
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
      size: 3
      nfiles: 1
  other:
    cmd: echo
    outs:
    - path: digits
      hash: md5
      md5: '12345678901234567890123456789012'
"""


def problem(folder: Path, text: str | bytes) -> str | None:
    (folder / "dvc.lock").write_bytes(text.encode() if isinstance(text, str) else text)
    return lock_problem(folder)


def test_a_whole_file_and_none_have_no_problem(tmp_path: Path) -> None:
    assert lock_problem(tmp_path) is None
    for text in (WHOLE, WHOLE.replace("\n", "\r\n")):
        assert problem(tmp_path, text) is None


@pytest.mark.parametrize("end", ["    params:", "hash: md5\n      md5: 0123", "    outs:\n    - path: "])
def test_a_file_that_lost_its_end_is_named(tmp_path: Path, end: str) -> None:
    said = problem(tmp_path, WHOLE[: WHOLE.index(end) + len(end)])
    assert said is not None and said.startswith("dvc.lock") and said.endswith(FIX) and len(said.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "\n", "{}\n", WHOLE[WHOLE.index("  other") :]])
def test_a_file_that_lost_its_beginning_is_named(tmp_path: Path, text: str) -> None:
    assert problem(tmp_path, text) == f"dvc.lock is empty or cut off: no line says its schema; {FIX}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("md5: 0123456789abcdef0123456789abcdef\n", "md5: 12345\n"), "line 8: md5: 12345"),
        (lambda text: text.replace("abcdef.dir", "abcdeg.dir"), "line 19: md5: 0123456789abcdef0123456789abcdeg.dir"),
        (lambda text: text.replace("abcdef.dir", "abcdef.di"), "line 19: md5: 0123456789abcdef0123456789abcdef.di"),
        (
            lambda text: text.replace("- path: out\n      hash: md5", "- path: out\n      hash: foo"),
            "line 18: hash: foo",
        ),
        (lambda text: text.partition("0123456789ab")[0], "line 8: md5:"),
    ],
)
def test_what_dvc_does_not_write_is_named(tmp_path: Path, change: Callable[[str], str], said: str) -> None:
    assert problem(tmp_path, change(WHOLE)) == f"dvc.lock, {said} is not what DVC writes; {FIX}"


@pytest.mark.parametrize(("mark", "line"), [("<<<<<<< HEAD", 1), ("=======", 3), (">>>>>>> theirs", 24)])
def test_a_conflict_is_named(tmp_path: Path, mark: str, line: int) -> None:
    lines = WHOLE.splitlines()
    lines.insert(line - 1, mark)
    found = problem(tmp_path, "\n".join(lines))
    assert found == f"dvc.lock, line {line}: two versions that git could not merge; take one, or {FIX}"


def test_what_is_no_text_or_no_file_is_named(tmp_path: Path) -> None:
    assert problem(tmp_path, b"schema: \xff\xfe") == f"dvc.lock is not text in UTF-8; {FIX}"
    (tmp_path / "dvc.lock").unlink()
    (tmp_path / "dvc.lock").mkdir()
    assert lock_problem(tmp_path) == f"dvc.lock is no file; {FIX}"


def test_gc_looks_before_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path, seeds=[0], rounds=1)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (tmp_path / "dvc.lock").write_text(WHOLE.replace("hash: md5", "hash: foo"))
    monkeypatch.chdir(tmp_path)
    given = argparse.Namespace(keep="last", drop="optimizer", wait=0.0, remote=None, yes=True)
    with pytest.raises(RankEError, match=r"^dvc\.lock, line 7: hash: foo is not what DVC writes; take it back"):
        collect_rounds(tmp_path, given)
