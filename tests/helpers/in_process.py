"""A tiny project on official formats and its real stages, in this process: DVC, Prefect and MLflow are not needed."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from rank_e.backbones.info import backbone_info
from rank_e.config import Params
from stages.runtime.stage import ARGUMENTS, make_stage
from tests.helpers import official
from tests.helpers.imagereward_files import write_imagereward
from tests.helpers.official_params import write_params

Cell = tuple[str, dict[str, Any]]
"""A stage's name and what it is called with."""
ONE_ROUND: dict[str, Any] = {
    "rounds": [{"id": 1, "prev": 0}],
    "evaluated": [1],
    "factorial": {"arms": ["coevolved", "frozen"], "round": 1},  # the arm is its own control
    "sft": {"train": True},
}
IMAGEREWARD = {
    "kind": "imagereward",
    "weight": 0.1,
    "normalise": "none",
    "file": "ImageReward.pt",
    "tokenizer": "vocab.txt",
}


def write_project(kind: str, folder: Path, *changes: dict[str, Any]) -> None:
    """The official project `kind` with one round, its base converted; `changes` are laid over its params.

    Janus is rewarded by ImageReward too, so that the two kinds have every reward.
    """
    write: Callable[[Path], list[str]] = getattr(official, f"write_{kind}_project")
    name, *arguments = write(folder)
    write_imagereward(folder / "weights/training")
    rewards = {"ranking": {"rewards": {"imagereward": IMAGEREWARD}}} if kind == "janus" else {}
    converter, parser = backbone_info(name).converter, ArgumentParser()
    assert converter is not None
    converter.add_arguments(parser)
    converter.convert(parser.parse_args(arguments), folder / "base")
    write_params(folder, official.PARAMS[kind], ONE_ROUND, rewards, *changes)


def cells() -> list[Cell]:
    """Every stage that computes, for one arm, seed and round, in the pipeline's order."""
    given = {"arm": "coevolved", "seed": 0, "round": 1}
    names = [name for name in ARGUMENTS if name not in ("code", "report")]
    return [(name, {key: given[key] for key in ARGUMENTS[name]}) for name in names]


def run_stages(params: Params, wanted: Iterable[Cell]) -> set[str]:
    """Run stages in the current folder, which is a project's; which of them could go on with less memory."""
    halving = set()
    for name, given in wanted:
        stage = make_stage(name, params, **given)
        import_module(f"stages.{name}").run(stage)
        if stage.memory.largest > 0:
            halving.add(name)
    return halving
