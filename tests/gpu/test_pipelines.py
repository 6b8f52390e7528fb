"""Every stage of tiny official pipelines on a GPU: LlamaGen with PatchGAN, LPIPS, CLIP and aesthetic, Janus with a
projected discriminator, HPSv2 and ImageReward.
"""

from pathlib import Path

import pytest

from rank_e.config import load
from stages.runtime.algorithms import configure_torch
from tests.helpers.in_process import cells, run_stages, write_project

CARD = pytest.param("cuda", marks=pytest.mark.gpu)
KINDS = pytest.mark.parametrize("kind", ["llamagen", "janus"])


def run(kind: str, folder: Path, patch: pytest.MonkeyPatch, device: str, deterministic: bool) -> None:
    """Write the project and run all its stages."""
    write_project(kind, folder, {"runtime": {"device": device, "deterministic": deterministic}})
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))  # a user's own module lies there
    again(folder)


def again(folder: Path) -> None:
    """Run all stages of the project in the current folder."""
    params = load()
    configure_torch(params)
    run_stages(params, cells())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@KINDS
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CARD])
def test_all_stages_give_the_same_bytes_twice(
    kind: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(kind, tmp_path, monkeypatch, device, deterministic=True)
    first = contents(tmp_path / "artifacts")
    assert len(first) > 40
    again(tmp_path)
    second = contents(tmp_path / "artifacts")
    assert [name for name in first if first[name] != second[name]] == []


@KINDS
@pytest.mark.parametrize("device", [CARD])
def test_all_stages_run_fast(kind: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(kind, tmp_path, monkeypatch, device, deterministic=False)
