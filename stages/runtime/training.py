"""How a stage trains, whatever its update: the loop over the steps, its log, its mid-stage state, and its artifact."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import pandas as pd
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.training.update import Update, UpdateState
from stages.runtime.artifacts import Artifact
from stages.runtime.stage import Stage
from stages.runtime.state import StageState
from stages.runtime.termination import TERMINATION

Saved = tuple[dict[str, Tensor], Any]
"""What `StageState.load` gives of an earlier try: tensors and a JSON value."""

Row = dict[str, float]


def train(
    stage: Stage,
    update: Update,
    state: StageState,
    saved: Saved | None,
    *,
    kept: UpdateState | None = None,
    value: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Take all steps of `update`, or those that are left since `saved`; returns the log, a row a step.

    A killed stage that is run again ends in the same bytes. RankEError for a metric that is not finite, before the
    state of that step would be kept. kept and value: what each saved state holds besides.
    """
    log: list[Row] = []
    start = update.first_step
    if saved is not None and "next" in saved[1]:
        update.load(by_file(saved[0]))
        log, start = saved[1]["log"], saved[1]["next"]
    for index in stage.progress(range(start, update.steps), stage.name):
        metrics = update.step(index)
        if wrong := [f"{name} = {value}" for name, value in metrics.items() if not isfinite(value)]:
            raise RankEError(f"{stage.title}, step {index}: {', '.join(wrong)}; give a lower learning rate")
        if index >= 0:
            number = update.steps_before + index
            log.append({"step": number, **metrics})
            stage.events.log(number, update.steps, log[-1])
        # After the last step the artifact itself is written at once, and a signal ends the stage before that.
        if (index + 1 < update.steps or TERMINATION.asked) and state.due():
            tensors = by_name({**(kept or {}), **update.state()})
            state.save(tensors, {**(value or {}), "log": log, "next": index + 1})
    return log


def write(
    stage: Stage,
    kind: str,
    tensors: UpdateState,
    log: list[Row],
    *,
    inputs: Mapping[str, Artifact],
    metrics: Mapping[str, float],
    params: Mapping[str, Any] | None = None,
    **documents: Any,
) -> None:
    """The artifact of `kind`, whether its weights were trained or (with no log) handed on.

    A file of tensors each, log.parquet, metrics.json (the given ones and the log's means), and a JSON file for each of
    `documents`, such as progress. params: of weights that are handed on, what alone decided that.
    """
    table = pd.DataFrame(log) if log else pd.DataFrame({"step": pd.Series(dtype="int64")})
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with stage.writer(kind, stage.path(stage.name), inputs=paths, params=params) as out:
        # The largest first: while it is hashed and brought to the disk, the others are written.
        for name, file in sorted(tensors.items(), key=lambda item: -sum(x.nbytes for x in item[1].values())):
            out.tensors(name, file)
        for name, document in documents.items():
            out.json(name, document)
        out.table("log", table)
        out.json("metrics", {**metrics, **table.drop(columns="step").mean().to_dict()})


def by_name(files: UpdateState) -> dict[str, Tensor]:
    """{file: {name: tensor}} -> {"file/name": tensor}, as a state file holds them."""
    return {f"{file}/{name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}


def by_file(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `by_name`; a file without tensors is not there."""
    files: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        file, _, name = key.partition("/")
        files.setdefault(file, {})[name] = tensor
    return files
