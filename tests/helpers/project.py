"""A project's real commands, run as a user would."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": ".", "DVC_NO_ANALYTICS": "1", "RANK_E_PYTHON": sys.executable}


def dvc(workspace: Path, *arguments: str, ran_by: str = "dvc") -> str:
    """What DVC's command says; ran_by: the module that is DVC."""
    done = subprocess.run(
        [sys.executable, "-m", ran_by, *arguments], cwd=workspace, env=environment(), capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    return said
