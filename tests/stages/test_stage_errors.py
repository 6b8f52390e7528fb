"""What a user can get wrong, at the level of the real commands: one line that names it, and nothing half-written."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import main
from stages.runtime.process import REFUSED
from stages.runtime.warm import warm_stages
from tests.helpers.llamagen_files import tiny_tokenizer
from tests.helpers.official import (
    ROOT,
    TOKENIZER,
    write_coco,
    write_evaluation_weights,
    write_llamagen,
    write_params,
    write_tars,
    write_training_weights,
)
from tests.helpers.official_params import FOLDER, LLAMAGEN
from tests.helpers.t5_files import write_t5

CHANGES: dict[str, Any] = {  # what needs no large file
    "decoder": {"perceptual": {"kind": "tests.stages.test_stage_errors:squares"}},
    "evaluation": {"distances": {}, "benchmarks": {}},
}
MINE = {"kind": "tests.stages.test_stage_errors:not_a_number", "weight": 1.0, "normalise": "none"}
CONSTANT = MINE | {"kind": "tests.stages.test_stage_errors:constant"}
ROUND = ("--arm", "coevolved", "--seed", "0", "--round", "1")


def squares(folder: Path, device: torch.device) -> Any:
    return lambda a, b: (a - b).square().mean()


def not_a_number(folder: Path, device: torch.device) -> Any:
    """A user's reward that has no score for the third image."""

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = images.mean((1, 2, 3))
        return torch.where(torch.arange(len(scores)) == 2, float("nan"), scores)

    return reward


def constant(folder: Path, device: torch.device) -> Any:
    return lambda images, prompts: torch.full((len(prompts),), 0.25)


@pytest.fixture(scope="module")
def warm() -> Iterator[None]:
    with warm_stages(ROOT):
        yield


def stage(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m stages ...` in a project's folder."""
    return subprocess.run([sys.executable, "-m", "stages", *words], cwd=folder, capture_output=True, text=True)


def params(folder: Path, *changes: dict[str, Any]) -> None:
    write_params(folder, LLAMAGEN, {"evaluation": {"benchmarks": {}}}, CHANGES, *changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, warm: None) -> Path:
    """A LlamaGen project whose first round has prompts, rollouts and a ranking."""
    folder = tmp_path_factory.mktemp("project")
    write_tars(folder / "data/training")
    write_coco(folder / "data/coco")
    write_training_weights(folder / "weights/training")
    write_evaluation_weights(folder / "weights/evaluation")
    main(["convert", *write_llamagen(folder / "official"), "--to", str(folder / "base")])
    params(folder)
    for words in (
        ("prompts", *ROUND[2:]),
        ("sft", *ROUND[2:4]),
        ("start", *ROUND[:4]),
        ("rollouts", *ROUND),
        ("ranking", *ROUND),
    ):
        done = stage(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(run, tmp_path / "project")
    return tmp_path / "project"


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if ".rank-e" not in path.parts)


def refused(folder: Path, words: tuple[str, ...], message: str) -> None:
    """The stage fails with one line that matches, and the project is as it was."""
    before = listing(folder)
    done = stage(folder, *words)
    errors = [line for line in done.stderr.splitlines() if " 100 % in " not in line]
    assert done.returncode == REFUSED and len(errors) == 1, done.stderr
    assert errors[0].startswith(f"{words[0]}: ") and re.search(message, errors[0]), errors[0]
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (
            ("start", *ROUND[:4]),
            {"backbone": {"name": "parti"}},
            r"backbone\.name: unknown backbone 'parti'; give one of janus, llamagen, shapes",
        ),
        (
            ("start", *ROUND[:4]),
            {"backbone": {"name": "janus"}},
            r"backbone\.base: base/base\.json is of format 'llamagen-t2i', not 'janus'",
        ),
        (("start", *ROUND[:4]), {"backbone": {"base": "bass"}}, r"backbone\.base: bass/base\.json does not exist; run"),
        (
            ("prompts", *ROUND[2:]),
            {"data": {"training": {"prompts": {"file": "p.txt", "column": None, "category": None}}}},
            r"data/training/p\.txt: holds no prompt, only blank lines; write a prompt on each line",
        ),
        (
            ("prompts", *ROUND[2:]),
            {"data": {"training": {"tars": "train-*.tar"}}},
            r"data/training/train-\*\.tar: no tar there; put tars there, or correct data\.training",
        ),
        (
            ("prompts", *ROUND[2:]),
            {"data": {"training": FOLDER | {"folder": "data/images"}}},
            r"data\.training\.folder: data/images does not exist",
        ),
        (
            ("ranking", *ROUND),
            {"ranking": {"rewards": {"clip": {"file": "ViT-L-14.pt"}}}},
            r"rewards\.clip: weights/training/ViT-L-14\.pt does not exist",
        ),
        (
            ("ranking", *ROUND),
            {"ranking": {"rewards": {"mine": MINE}}},
            r"reward mine: score of image 2 is nan",
        ),
        (
            ("policy", *ROUND),
            {"guards": {"gradient_norm": 1e-6}},
            r"policy coevolved s0 r1: gradient_norm = \S+ passed guards\.gradient_norm = 1e-06: .*round 0 is kept",
        ),
        (
            ("ranking", *ROUND),
            {"ranking": {"rewards": dict.fromkeys(LLAMAGEN["ranking"]["rewards"], CONSTANT)}},
            r"ranking coevolved s0 r1: the reward is constant, all \d+ rollouts of round 1 got \S+: it ranks nothing",
        ),
        (
            ("reference",),
            {"evaluation": {"scores": {"clip": {"file": "none.pt"}}}},
            r"evaluation\.scores\.clip: weights/evaluation/none\.pt does not exist",
        ),
        (("reference",), {"evaluation": {"reference_images": 40}}, r"data\.held_out: 14 images; evaluation\.ref"),
        (
            ("decoder", *ROUND),
            {"decoder": {"perceptual": {"kind": "lpips", "file": "vgg16.pth"}}},
            r"weights/training/vgg16\.pth does not exist",
        ),
    ],
)
def test_a_stage_names_the_parameter(run: Path, words: tuple[str, ...], changes: dict, message: str) -> None:
    (run / "data/training/p.txt").write_text("\n \n")
    params(run, changes)
    refused(run, words, message)


def test_too_many_images_that_cannot_be_decoded_stop_the_decoder(project: Path) -> None:
    shutil.rmtree(project / "data/training")
    write_tars(project / "data/training", broken=5)
    params(project)
    message = (
        r"\d of 12 samples cannot be used, more than data\.training\.max_bad_share = 0\.1; one is "
        r"data/training/part-1\.tar:00\d\d, which cannot be decoded .*; fix the data or raise the share"
    )
    refused(project, ("decoder", *ROUND), message)


def test_a_base_that_lost_its_end_is_named_by_every_reader(project: Path) -> None:
    params(project)
    file = project / "base/policy.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    message = r"backbone\.base: base/policy\.safetensors has \d+ bytes, not \d+; run `rank-e convert llamagen`"
    for words in (("start", *ROUND[:4]), ("policy", *ROUND), ("reference",)):
        refused(project, words, message)


def test_another_text_encoder_than_the_converted_one_is_refused(project: Path) -> None:
    params(project)
    shutil.rmtree(project / "official/flan-t5")
    refused(project, ("prompts", *ROUND[2:]), r"backbone\.text: .*flan-t5/\w+\.json is missing")
    write_t5(project / "official/flan-t5", max_shard_size="20KB")
    refused(project, ("prompts", *ROUND[2:]), r"backbone\.text: .*flan-t5/model\.safetensors is missing; run `rank-e")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ("swapped", [], r"vq_ds4_t2i\.pt is not a LlamaGen policy"),
        ("cut", [], r"t2i_tiny\.pt is truncated"),
        ("named", ["--image-size", "512"], r"t2i_XL_stage1_256\.pt: wrong image size for the checkpoint: 512 by"),
        ("other codebook", [], r"t2i_tiny\.pt has a vocabulary of 64, .*vq_ds4_t2i\.pt has 32 codes"),
        ("narrow text", [], r"text features are 16 wide, the policy reads 32; give flan-t5-xl"),
    ],
)
def test_convert_refuses_what_does_not_belong_together(
    tmp_path: Path, change: str, arguments: list[str], message: str
) -> None:
    _, policy, tokenizer, *options = write_llamagen(tmp_path / "official")
    file = Path(policy)
    if change == "swapped":
        policy, tokenizer = tokenizer, policy
    elif change == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "named":
        policy = str(file.rename(file.with_name("t2i_XL_stage1_256.pt")))
    elif change == "other codebook":
        config = replace(TOKENIZER, codebook_size=32)
        torch.save({"model": tiny_tokenizer(config)}, tokenizer)
    else:
        shutil.rmtree(tmp_path / "official/flan-t5")
        write_t5(tmp_path / "official/flan-t5", width=16)
    before = listing(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(["convert", "llamagen", policy, tokenizer, *options, *arguments, "--to", str(tmp_path / "base")])
    text = str(error.value)
    assert text.startswith("rank-e: ") and "\n" not in text and re.search(message, text), text
    assert listing(tmp_path) == before
