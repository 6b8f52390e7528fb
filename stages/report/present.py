"""The part of a run that is there: arms, seeds and rounds that can stand beside each other, and what is missing.

A run that was started for one arm or seed, or that is not over, has a report of that part, which says what it lacks.
"""

from collections.abc import Collection
from pathlib import Path

from rank_e.config import Params
from stages.runtime.stage import artifact_path

Cell = tuple[str, int]
"""(arm, seed)"""


def present(params: Params, project: Path, stale: Collection[str] = ()) -> tuple[Params, list[str]]:
    """The params of the largest part whose evaluations are all there, and the artifacts of the whole that are not.

    The part ends with the last round after which any arm was evaluated. `stale`: places whose artifacts are not up to
    date, as if they were not there. Where nothing is missing, or no arm was evaluated, the params are as they were.
    """

    def there(kind: str, arm: str, seed: int, number: int) -> bool:
        path = artifact_path(kind, arm, seed, number)
        return str(path) not in stale and (project / path).exists()

    missing = [
        str(artifact_path(kind, arm, seed, number))
        for kind in ("evaluation", "factorial")
        for arm in (params.arms if kind == "evaluation" else params.factorial.arms)
        for seed in params.seeds
        for number in params.evaluated
        if not there(kind, arm, seed, number)
    ]
    cells = [(arm, seed) for arm in params.arms for seed in params.seeds]
    reached = [n for n in params.evaluated if any(there("evaluation", *cell, n) for cell in cells)]
    if not missing or not reached:
        return params, missing
    last = reached[-1]
    evaluated = [number for number in params.evaluated if number <= last]
    whole = {cell for cell in cells if all(there("evaluation", *cell, number) for number in evaluated)}
    arms, seeds = _largest(params, whole)
    part = {
        "arms": {arm: params.arms[arm] for arm in arms},
        "seeds": seeds,
        "rounds": [item for item in params.rounds if item.id <= last],
        "evaluated": evaluated,
        "factorial": params.factorial.model_copy(
            update={"arms": [arm for arm in params.factorial.arms if arm in arms] or arms[:1], "round": last}
        ),
    }
    return params.model_copy(update=part), missing


def _largest(params: Params, whole: Collection[Cell]) -> tuple[list[str], list[int]]:
    """Arms and seeds of which every pair is whole: as many pairs as there can be, of those as many arms."""
    found = []
    for seed in params.seeds:
        arms = [arm for arm in params.arms if (arm, seed) in whole]
        seeds = [other for other in params.seeds if all((arm, other) in whole for arm in arms)]
        found.append((len(arms) * len(seeds), len(arms), arms, seeds))
    _, _, arms, seeds = max(found, key=lambda item: item[:2])
    return arms, seeds
