"""The toy pipeline as a project of DVC."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.fake_artifacts import write_params
from tests.helpers.toy_pipeline import PIPELINE, WORK

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "work.py").write_text(WORK)
    (folder / "dvc.yaml").write_text(PIPELINE)
    write_params(folder, seeds=[0], rounds=2)
    for name in ("assets", "rank_e"):  # what the params name must be there
        (folder / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def toy(tmp_path: Path, template: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "toy", symlinks=True))
