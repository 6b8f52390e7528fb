"""Every file and folder that params.yaml names, looked for before anything runs: a line for each that is not there.

Contents are left to the loaders, which refuse what they cannot use; here only what is named, and how, is checked, and
that no pointer or web page stands in a file's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.preflight.factories import factory_problems
from rank_e.config import Params
from rank_e.config.kinds import Kind
from rank_e.io.headers import WEIGHT_FILES
from rank_e.io.stand_ins import stand_in

STYLES = ("anime", "concept-art", "paintings", "photo")  # HPSv2's benchmark files
GET = "get it (docs/reproduce.md) or correct the path"


def missing_files(params: Params) -> list[str]:
    """What the data, rewards, networks and metrics of the params need and do not find."""
    found = [*_dataset("data.training", params.data.training), *_dataset("data.held_out", params.data.held_out)]
    training, evaluating = Path(params.weights.training), Path(params.weights.evaluation)
    folders = {"weights.training": training, "weights.evaluation": evaluating}
    absent = [f"{where}: folder {folder} does not exist; {GET}" for where, folder in folders.items()]
    found += [line for line, folder in zip(absent, folders.values(), strict=True) if not folder.is_dir()]
    for arm in map(params.arm, params.arms):
        for name, reward in arm.ranking.rewards.items():
            found += _needs(f"ranking.rewards.{name}", reward, training)
        if arm.decoder.train:
            found += _needs("decoder.perceptual", arm.decoder.perceptual, training)
            found += _needs("decoder.discriminator", arm.decoder.discriminator, training)
    evaluation = params.evaluation
    for name, section in evaluation.distances.items():
        found += _needs(f"evaluation.distances.{name}", section, evaluating)
    for name, section in evaluation.scores.items():
        found += _needs(f"evaluation.scores.{name}", section, evaluating)
    for name, benchmark in evaluation.benchmarks.items():
        found += _benchmark(f"evaluation.benchmarks.{name}", benchmark, evaluating)
    return list(dict.fromkeys(found))  # arms share most of what they name


def need_file(where: str, path: Path) -> Iterator[str]:
    """A line if no such file exists, or a pointer or a web page stands in its place."""
    if not path.is_file():
        yield f"{where}: file {path} does not exist; {GET}"
    elif (found := stand_in(path)) is not None:
        yield f"{where}: file {path} {found}"


def _folder(where: str, path: Path) -> Iterator[str]:
    """A Hugging Face folder: a configuration and weights."""
    if not path.is_dir():
        yield f"{where}: folder {path} does not exist; {GET}"
        return
    yield from need_file(where, path / "config.json")
    found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        yield f"{where}: folder {path} holds none of {', '.join(WEIGHT_FILES)}; {GET}"
    else:
        yield from need_file(where, found)


def _needs(where: str, section: Kind, folder: Path) -> Iterator[str]:
    """What a section's keys name within `folder`, and of the user's own whether it can be called."""
    if not section.factory:
        given = {"generator"} if where == "decoder.discriminator" else set()
        yield from factory_problems(f"{where}.kind", section.kind, {*section.options, *given})
    for key, what, value in section.needs():
        path = folder / value
        if what == "folder":
            yield from _folder(f"{where}.{key}", path)
        elif what == "vocabulary" and path.is_dir():
            yield from need_file(f"{where}.{key}", path / "vocab.txt")
        else:
            yield from need_file(f"{where}.{key}", path)


def _dataset(where: str, section: Any) -> Iterator[str]:
    """A dataset's folder and what its kind wants to lie there; a dotted path must lead to a factory."""
    folder = Path(section.folder)
    if not folder.is_dir():
        yield f"{where}.folder: folder {folder} does not exist; {GET}"
        return
    if ":" in section.kind:
        yield from factory_problems(f"{where}.kind", section.kind, section.options)
        return
    if section.kind == "webdataset":
        if not any(folder.glob(section.tars)):
            yield f"{where}.tars: no file {folder / section.tars}; {GET}"
    elif section.kind == "folder":
        yield from need_file(f"{where}.captions", folder / section.captions)
    else:
        yield from need_file(f"{where}.split", folder / "annotations" / f"captions_{section.split}.json")
        if not (folder / section.split).is_dir():
            yield f"{where}.split: folder {folder / section.split} does not exist; {GET}"
    if section.prompts is not None:
        yield from need_file(f"{where}.prompts.file", folder / section.prompts.file)


def _benchmark(where: str, section: Any, folder: Path) -> Iterator[str]:
    if section.kind == "prompts":
        yield from need_file(f"{where}.file", folder / section.file)
        for name, score in section.scores.items():
            yield from _needs(f"{where}.scores.{name}", score, folder)
    elif section.kind == "hpsv2":
        for style in STYLES:
            yield from need_file(f"{where}.prompts", folder / section.prompts / f"{style}.json")
        yield from need_file(f"{where}.file", folder / section.file)
    else:
        yield from need_file(f"{where}.prompts", folder / section.prompts)
        yield from _folder(f"{where}.detector", folder / section.detector)
        yield from need_file(f"{where}.clip", folder / section.clip)
