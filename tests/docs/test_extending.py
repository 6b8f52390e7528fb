"""Every example of the documentation runs as it stands: one's own things, how to add more."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import Tensor

from pipeline.preflight.named import missing_files
from rank_e.config import ArmParams, Params, merge, parse
from rank_e.config.profiles import resolve
from rank_e.data.opening import open_dataset
from rank_e.evaluation.suite import build_suite
from rank_e.rewards.mixture import build_rewards
from rank_e.training.networks import build_perceptual
from stages.code import code_lists
from tests.helpers.project import ROOT

CPU = torch.device("cpu")
GUIDE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LONGEST = 14
"""Lines of an example, blank ones and its docstring aside."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project that holds the guide's modules, and photos for its dataset."""
    for block in blocks(GUIDE, "python"):
        path = tmp_path / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(("a_red_door", "two_dogs", "the_sea")):
        Image.new("RGB", (60, 50), (80 * index, 40, 90)).save(tmp_path / f"photos/{name}.png")
    for name in ("assets", "rank_e", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(text.replace("      - rank_e\n", "      - rank_e\n      - mine\n", 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]  # another test's `mine` is another module


@pytest.fixture
def params() -> Params:
    """The tiny profile with every section of the guide laid over it."""
    yaml = YAML(typ="safe", pure=True)
    data: dict[str, Any] = yaml.load(resolve(ROOT / "profiles/tiny.yaml"))
    for block in blocks(GUIDE, "yaml"):
        data = merge(data, yaml.load(block))
    return parse(data)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def test_the_examples_are_short() -> None:
    for block in blocks(GUIDE, "python"):
        lines = [
            line for line in block.splitlines() if line.strip() and not line.startswith(("#", '"""', "import", "from"))
        ]
        assert len(lines) <= LONGEST, block


def test_what_the_guide_adds_is_valid_and_part_of_the_stages(project: Path, params: Params) -> None:
    assert missing_files(params) == []
    lists = code_lists(project, params)
    users = {name: {stage for stage, files in lists.items() if f"mine/{name}.py" in files} for name in
             ("rewards", "metrics", "losses", "datasets")}  # fmt: skip
    assert users["losses"] == {"decoder"} and users["rewards"] >= {"ranking", "decoder", "evaluation"}
    assert users["metrics"] == {"reference", "baseline", "sft_evaluation", "evaluation", "factorial"}
    assert users["datasets"] >= {"prompts", "decoder", "sft"}


def test_a_reward(project: Path, params: Params, images: Tensor) -> None:
    section = {"saturation": params.ranking.rewards["saturation"]}
    mixture = build_rewards(section, project, CPU)
    colours = torch.zeros(2, 3, 4, 4)
    colours[0] = 0.5
    colours[1, 0] = 1.0
    assert mixture.raw_scores(colours, ["grey", "red"])["saturation"].tolist() == [0.0, 10.0]
    (gradient,) = torch.autograd.grad(mixture(images.requires_grad_(), ["x"] * 3).sum(), images)
    assert gradient.abs().sum() > 0


def test_a_metric(project: Path, params: Params) -> None:
    suite = build_suite({}, {"brightness": params.evaluation.scores["brightness"]}, project, CPU)
    levels = torch.tensor([0, 100, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert suite.scores["brightness"](levels, ["a", "b", "c"]).tolist() == [0.0, 100.0, 255.0]
    (described,) = suite.described()
    assert described["key"] == "brightness" and described["name"] == "Brightness" and described["better"] == "nearer"


def test_a_perceptual_loss(project: Path, params: Params, images: Tensor) -> None:
    loss = build_perceptual(params.decoder.perceptual, project, CPU)
    assert loss(images, images).item() == 0.0 < loss(images, images.flip(0)).item()
    assert params.decoder.perceptual.options == {"factor": 2}


def test_a_dataset(project: Path, params: Params) -> None:
    dataset = open_dataset(params.data.training, 48, "data.training")
    assert sorted(prompt for prompt, _ in dataset.prompts(3, 0)) == ["a red door", "the sea", "two dogs"]
    assert dataset.real_images(["x", "y"], 1).shape == (2, 3, 48, 48) and dataset.skipped() == []


def test_an_arm(params: Params) -> None:
    arm, other = params.arm("uniform"), params.arm("coevolved")
    assert arm.decoder.rank_weighting == "uniform" and other.decoder.rank_weighting == "rank"
    same = {name: getattr(arm, name) == getattr(other, name) for name in ArmParams.model_fields}
    assert same == {"rollouts": True, "ranking": True, "policy": True, "decoder": False}


def test_contributing_counts_the_lines_that_it_names() -> None:
    """`path` (N lines) is a whole file or folder of so many; `path`: N lines with `text`, as many as hold it."""
    whole = re.findall(r"`([\w./-]+)` \(([\d,]+) lines\)", CONTRIBUTING)
    parts = re.findall(r"`([\w./-]+)`: (\d+) lines? with `([^`]+)`", CONTRIBUTING)
    assert len(whole) >= 4 and len(parts) >= 6
    for path, count in whole:
        place = ROOT / path
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        found = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        assert found == int(count.replace(",", "")), path
    for path, count, text in parts:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        assert sum(text in line for line in lines) == int(count), (path, text)


def test_what_contributing_names_can_be_imported() -> None:
    for path in re.findall(r"`(rank_e(?:\.\w+)+):\w+`", CONTRIBUTING):
        import_module(path)
