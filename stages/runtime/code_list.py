"""What a stage is made of: the source files that decide the bytes of its artifact."""

from collections.abc import Iterable
from pathlib import Path

from rank_e.backbones import paths_of
from rank_e.config import Params
from rank_e.config.kinds import Kind
from stages.runtime.imports import Sources

OUTSIDE = frozenset(
    {
        "rank_e/config/messages.py",  # the sentences about params that are wrong: no stage runs with those
        "rank_e/config/renames.py",  # what old keys are called now: no stage runs with those
        "rank_e/errors.py",  # a name for errors, and nothing else
        "stages/runtime/code_list.py",  # finds what is on the lists
        "stages/runtime/failures.py",  # the lines that a stage ends with when it cannot go on
        "stages/runtime/locks.py",  # who may run now
        "stages/runtime/progress.py",  # bars, lines and the live log of steps
        "stages/runtime/termination.py",  # when a stage ends that is asked to
        "stages/runtime/usage.py",  # seconds and memory
    }
)
"""Code that words errors, shows progress, locks, ends stages or makes these lists.

Neither it nor what it alone imports decides a byte.
"""


def code_list(sources: Sources, name: str) -> dict[str, str]:
    """The code list of the stage called `name`: {path: sha256} of the files that decide its bytes, by path."""
    # A stage may be a package, of which `python -m` runs __main__.py.
    paths = sources.closure(f"stages.{name}.__main__", OUTSIDE)
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
