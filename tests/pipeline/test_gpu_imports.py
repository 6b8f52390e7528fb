"""What runs on a GPU worker imports nothing of the orchestration: stages and tests/gpu, with those packages barred."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BARRED = ("dvc", "prefect", "mlflow", "webdataset", "xdist", "hypothesis", "pipeline")
BAR = f"""
import importlib.util, pkgutil, sys

class Barred:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {BARRED!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Barred(finder) for finder in sys.meta_path]
for name in {BARRED!r}:
    assert importlib.util.find_spec(name) is None
"""
STAGES = """
import stages
for module in pkgutil.walk_packages(stages.__path__, "stages."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import tests.helpers.in_process, tests.helpers.one_round
"""
COLLECT = """
import pytest
sys.exit(pytest.main(["-q", "--collect-only", "-o", "addopts=--import-mode=importlib", "-m", "gpu", "tests/gpu"]))
"""


def run(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", BAR + code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_stages_and_the_tests_of_a_gpu_need_no_orchestration() -> None:
    found = run(STAGES + COLLECT)
    assert "test_all_stages_run_fast[cuda-janus]" in found and "[janus-published]" in found
