"""Stage code: what each stage is made of, so that a changed file re-runs those that use it and no others.

artifacts/code/<stage>.json maps every source file that decides a byte of the stage's artifact to its sha256. Each stage
depends on its own: DVC sees one dependency instead of dozens, and a file that keeps its bytes stops the change. DVC
notices the change itself by the `deps` of this stage.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ruamel.yaml import YAML

from rank_e.backbones import backbone_path
from rank_e.config import Params
from rank_e.config.kinds import Kind
from rank_e.errors import RankEError
from rank_e.io.files import sha256_of, sync
from stages.runtime.imports import Sources
from stages.runtime.stage import ARGUMENTS, Stage, main

OUTSIDE = frozenset(
    {
        "rank_e/config/__init__.py",
        "rank_e/config/data.py",
        "rank_e/config/evaluation.py",
        "rank_e/config/kinds.py",
        "rank_e/config/loading.py",
        "rank_e/config/messages.py",
        "rank_e/config/renames.py",
        "rank_e/config/schema.py",
        "rank_e/config/types.py",
        "rank_e/errors.py",
        "stages/runtime/process.py",
        "stages/runtime/progress.py",
        "stages/runtime/state.py",
    }
)
"""Code that reads params, words errors, begins a process, shows progress or resumes: it decides no artifact's bytes."""


def manifests(project: Path, params: Params) -> dict[str, dict[str, str]]:
    """For each stage {path of a source file: its sha256}; RankEError names a file whose change DVC would not notice."""
    sources = Sources(project, imported_by_name(params))
    used = {name: sources.closure(f"stages.{name}") - OUTSIDE for name in ARGUMENTS if name != "code"}
    every = sorted(set().union(*used.values()))
    watched = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text(encoding="utf-8"))
    folders = watched["stages"]["code"]["deps"]
    for path in every:
        if not any(PurePosixPath(path).is_relative_to(folder) for folder in folders):
            raise RankEError(f"{path}: its changes would go unseen; add it to the deps of the stage `code` in dvc.yaml")
    hashes = {path: sha256_of(project / path) for path in every}
    return {name: {path: hashes[path] for path in paths} for name, paths in used.items()}


def imported_by_name(params: Params) -> dict[str, set[str]]:
    """The modules that params.yaml makes the loaders import, by the loader's file."""
    arms, evaluation = [params.arm(name) for name in params.arms], params.evaluation
    rewards = [*params.ranking.rewards.values(), *(item for arm in arms for item in arm.ranking.rewards.values())]
    lists = [benchmark for benchmark in evaluation.benchmarks.values() if benchmark.kind == "prompts"]
    scores = [*evaluation.scores.values(), *(item for benchmark in lists for item in benchmark.scores.values())]
    return {
        "rank_e/backbones/__init__.py": {backbone_path(params.backbone.name).partition(":")[0]},
        "rank_e/data/opening.py": modules(params.data.own),
        "rank_e/rewards/mixture.py": modules(rewards),
        "rank_e/evaluation/suite.py": modules([*evaluation.distances.values(), *scores]),
        "rank_e/training/networks.py": modules(
            [item for arm in arms for item in (arm.decoder.perceptual, arm.decoder.discriminator)]
        ),
    }


def modules(sections: Iterable[Kind]) -> set[str]:
    """The modules of the factories."""
    return {section.path.partition(":")[0] for section in sections}


def run(stage: Stage) -> None:
    """artifacts/code/: a file for each stage, whole or not there, the same bytes for the same code."""
    folder = stage.path("code")
    folder.mkdir(parents=True, exist_ok=True)
    for name, manifest in manifests(Path(), stage.params).items():
        temporary = folder / f"{name}.tmp-json"  # no dependency of the report: see .dvcignore
        temporary.write_text(json.dumps(manifest, sort_keys=True, indent=2) + "\n", encoding="utf-8")
        sync(temporary)
        os.replace(temporary, folder / f"{name}.json")
    sync(folder)


if __name__ == "__main__":
    main("code", run, computes=False)
