"""The toy pipeline as a project of DVC, and a project of fake artifacts with an empty MLflow store."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rank_e.config import Params
from tests.helpers.fake_artifacts import write_params, write_project
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


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised sqlite file: making its tables takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("store")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Params]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path, write_project(tmp_path, seeds=[0], rounds=2)
