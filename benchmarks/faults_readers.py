"""What is read of a damaged project in this process: by the readers of artifacts, tables, cache, weights and states.

How a reading ends: `named` in one line that tells the place; `recomputed`, said, to the same bytes; `unchanged`, with
everything as it was written. Anything else is a fault: `believed`, or `no line`.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from rank_e.config import load
from rank_e.errors import RankEError
from rank_e.io import manifest as base_manifest
from rank_e.io.verified import Verified
from rank_e.shapes.backbone import ShapesBackbone, load_tensors
from stages.report.data import load_results
from stages.runtime import artifacts, state
from stages.runtime.algorithms import configure_torch
from stages.runtime.failures import words
from stages.runtime.stage import artifact_path, make_stage

NAMED, RECOMPUTED, UNCHANGED = "named", "recomputed", "unchanged"
BELIEVED, NO_LINE, NOT_HEALED = "believed", "no line", "not healed"
WEIGHTS = Path("assets") / "shapes"
BASE = ("text", "tokenizer", "policy", "reward", "evaluator")
Cell = tuple[str, str, int, int]
"""(stage, arm, seed, round)"""


class Found(NamedTuple):
    """How a trial ended, and the line that was said."""

    outcome: str
    line: str = ""


class Interrupted(BaseException):
    """Stands for a kill."""


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[None]:
    """As in a process that has just begun in this folder: nothing is known to be whole."""
    before = Path.cwd()
    artifacts.READ = Verified()
    base_manifest.WEIGHTS = Verified()
    shapes = import_module("rank_e.shapes.metrics")
    for cached in ("_evaluator", "_evaluator_sha256"):
        getattr(shapes, cached).cache_clear()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def judge(read: Callable[[], Any], written: Any, place: Path) -> Found:
    """Read, and compare with what was written; an error has to be one line that names the place."""
    try:
        found = read()
    except RankEError as error:
        return named(str(error), place)
    except Exception as error:  # as a command would say it
        said = words(error)
        return named(said, place) if said else Found(NO_LINE, f"{type(error).__name__}: {str(error)[:200]}")
    return Found(UNCHANGED if same(found, written) else BELIEVED, str(place))


def named(line: str, place: Path) -> Found:
    """One line that tells the place, or its folder."""
    return Found(NAMED if "\n" not in line and str(place) in line else NO_LINE, line[:300])


def worst(found: list[Found]) -> Found:
    """Of several readers of one damage."""
    order = (BELIEVED, NO_LINE, NAMED, RECOMPUTED, UNCHANGED)
    return min(found, key=lambda item: order.index(item.outcome))


def same(found: Any, written: Any) -> bool:
    """Whether nested values are equal, number by number."""
    if isinstance(written, dict):
        return found.keys() == written.keys() and all(same(found[key], written[key]) for key in written)
    if isinstance(written, torch.Tensor):
        return found.dtype == written.dtype and bool(torch.equal(found, written))
    if isinstance(written, np.ndarray):
        return found.dtype == written.dtype and bool(np.array_equal(found, written))
    if isinstance(written, pd.DataFrame):
        return bool(found.equals(written))
    return bool(found == written)


def kinds_of(folders: list[Path]) -> dict[Path, str]:
    """What each whole artifact is."""
    return {folder: artifacts.read_manifest(folder)["kind"] for folder in folders}


def contents(folder: Path, kind: str) -> dict[str, Any]:
    """Everything that an artifact's readers give."""
    artifact = artifacts.read_artifact(folder, kind)
    readers = {".json": artifact.json, ".parquet": artifact.table, ".safetensors": artifact.arrays}
    files = [Path(name) for name in artifact.manifest["files"]]
    return {file.name: readers[file.suffix](file.stem) for file in files}


def results(partial: bool) -> dict[str, Any]:
    """What the report, and with `partial` the command `compare`, reads of the project in this folder."""
    return vars(load_results(load(), Path(), partial))


def base() -> dict[str, Any]:
    """Everything that is read of the base."""
    weights = {name: load_tensors(WEIGHTS, name) for name in BASE}
    return {"weights": weights, "manifest": ShapesBackbone(WEIGHTS, torch.device("cpu"), torch.float32).manifest}


def run_stage(cell: Cell) -> str:
    """Run a stage in this process and folder; what it printed."""
    name, arm, seed, round_id = cell
    params = load()
    configure_torch(params)
    said = io.StringIO()
    stage = make_stage(name, params, arm=arm, seed=seed, round=round_id)
    stage = stage.begun(Path("params.yaml").read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        import_module(f"stages.{name}").run(stage)
    return said.getvalue()


def interrupt(cell: Cell, target: Path) -> None:
    """Run a stage until it has kept a state, and move that to `target`: the first step's, or all of an evaluation's."""
    moment = "remove" if cell[0] == "evaluation" else "save"
    kept, limits = getattr(state.StageState, moment), (state.SAVE_SECONDS, state.SHARE)

    def stop(self: state.StageState, *arguments: Any) -> None:
        if moment == "save":
            kept(self, *arguments)
        raise Interrupted

    setattr(state.StageState, moment, stop)
    state.SAVE_SECONDS = state.SHARE = 0.0
    shutil.rmtree(artifact_path(*cell), ignore_errors=True)
    shutil.rmtree(Path(".rank-e"), ignore_errors=True)
    try:
        run_stage(cell)
    except Interrupted:
        pass
    finally:
        setattr(state.StageState, moment, kept)
        state.SAVE_SECONDS, state.SHARE = limits
    shutil.copytree(Path(".rank-e") / "state", target)
