"""The project's `dvc repro`: stages in forks of one warm process where that is this Python, each with its number."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.counting import stages_of
from tests.helpers.project import ROOT, dvc, environment

FAKE = """
import json, os, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(json.dumps(["torch" in sys.modules, os.getppid()]))
"""
STAGES = """
stages:
  one: {cmd: exec sh stages/python -m stages fake one, deps: [stages/fake.py], outs: [one]}
  two: {cmd: exec sh stages/python -m stages fake two, deps: [one], outs: [two]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two stages that say whether torch was there already, and whose process they are of."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "stages" / "fake.py").write_text(FAKE)
    (tmp_path / "rank_e").symlink_to(ROOT / "rank_e")
    (tmp_path / "dvc.yaml").write_text(STAGES)
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    return tmp_path


def repro(project: Path, **given: str) -> list[str]:
    command = [sys.executable, "-m", "pipeline.dvc_command", "repro"]
    variables = {**environment(), "PYTHONPATH": f".{os.pathsep}{ROOT}", **given}
    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("[")]


def test_stages_are_forks_of_one_process_which_starts_with_the_first(project: Path) -> None:
    lines = repro(project)
    found = [json.loads((project / name).read_text()) for name in ("one", "two")]
    assert found[0] == found[1] and found[0][0]  # the libraries were there, and the parent is the same
    assert [line.partition(",")[0] for line in lines] == ["[1/2", "[2/2"] and "Running stage 'one':" in lines[0]
    again = repro(project)
    assert [line.partition("] ")[2] for line in again] == [
        f"Stage '{n}' didn't change, skipping" for n in ("one", "two")
    ]


def test_another_python_has_processes_of_its_own(project: Path) -> None:
    other = project / "other" / "python"
    other.parent.mkdir()
    other.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    repro(project, RANK_E_PYTHON=str(other))
    assert [json.loads((project / name).read_text())[0] for name in ("one", "two")] == [False, False]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("", 10),
        ("-f", 10),
        ("policy@frozen-0-round1", 4),  # two rounds, the start and the prompts
        ("policy", 7),
        ("-s policy@frozen-0-round1", 1),
        ("-S a.b=3", 10),
        ("-j 4", None),
        ("no-such-stage", None),
    ],
)
def test_how_many_stages_a_call_looks_at(toy: Path, words: str, count: int | None) -> None:
    assert stages_of(toy, words.split()) == count
