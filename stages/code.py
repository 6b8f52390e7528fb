"""Stage code: what each stage is made of, so that a changed file re-runs those that use it and no others.

artifacts/code/<stage>.json, a stage's code list, maps every source file that decides a byte of its artifact to the
file's sha256. Each stage depends on its own: DVC sees one dependency instead of dozens, and a file that keeps its bytes
stops the change. DVC notices the change itself by the `deps` of this stage.
"""

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ruamel.yaml import YAML

from rank_e.backbones import paths_of
from rank_e.config import Params
from rank_e.config.kinds import Kind
from rank_e.errors import RankEError
from rank_e.io.files import replacing
from stages.runtime.imports import Sources
from stages.runtime.stage import ARGUMENTS, Stage, main

OUTSIDE = frozenset(
    {
        "rank_e/config/messages.py",  # the sentences about params that are wrong: no stage runs with those
        "rank_e/config/renames.py",  # what old keys are called now: no stage runs with those
        "rank_e/errors.py",  # a name for errors, and nothing else
        "stages/runtime/progress.py",  # bars, lines and the live log of steps
    }
)
"""Code that words errors or shows progress: it decides no artifact's bytes."""


def code_lists(project: Path, params: Params) -> dict[str, dict[str, str]]:
    """For each stage its code list; RankEError names a file whose change DVC would not notice."""
    sources = sources_of(project, params)
    found = {name: code_list(sources, name) for name in ARGUMENTS if name != "code"}
    pipeline = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text(encoding="utf-8"))
    watched = pipeline["stages"]["code"]["deps"]
    for path in sorted(set().union(*found.values())):
        if not any(PurePosixPath(path).is_relative_to(dep) for dep in watched):
            raise RankEError(f"{path}: its changes would go unseen; add it to the deps of the stage `code` in dvc.yaml")
    return found


def code_list(sources: Sources, name: str) -> dict[str, str]:
    """The code list of the stage called `name`: {path: sha256} of the files that decide its bytes, by path."""
    # A stage may be a package, of which `python -m` runs __main__.py.
    paths = sources.closure(f"stages.{name}.__main__") - OUTSIDE
    return {path: sources.sha256(path) for path in sorted(paths)}


def sources_of(project: Path, params: Params) -> Sources:
    """The source files of the project, which import what these params name."""
    return Sources(project, imported_by_name(params))


def imported_by_name(params: Params) -> dict[str, set[str]]:
    """The modules that params.yaml makes the loaders import, by the loader's file."""
    arms, evaluation = [params.arm(name) for name in params.arms], params.evaluation
    rewards = [*params.ranking.rewards.values(), *(item for arm in arms for item in arm.ranking.rewards.values())]
    lists = [benchmark for benchmark in evaluation.benchmarks.values() if benchmark.kind == "prompts"]
    scores = [*evaluation.scores.values(), *(item for benchmark in lists for item in benchmark.scores.values())]
    return {
        "rank_e/backbones/__init__.py": {paths_of(params.backbone.name).backbone.partition(":")[0]},
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
    for name, files in code_lists(Path(), stage.params).items():
        with replacing(folder / f"{name}.json") as file:
            file.write_text(json.dumps(files, sort_keys=True, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("code", run, computes=False)
