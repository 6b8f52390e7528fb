"""What an older params file calls otherwise than this version: the old name and the new one, a line for each."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

ARM = re.compile(r"arms\.[^.]*\.")

KEYS = {
    "sft.pictures": "sft.images",
    "evaluation.pictures": "evaluation.images",
    "evaluation.reference_pictures": "evaluation.reference_images",
    "evaluation.real_pictures": "evaluation.real_images",
    "policy.minimum_std": "ranking.minimum_std",
    "policy.advantage_clamp": "ranking.advantage_clamp",
}
KINDS = {
    "shapes": "rank_e.shapes.dataset:open_dataset",
    "rank_e.shapes.judges:clip_reward": "rank_e.shapes.rewards:clip_reward",
    "rank_e.shapes.judges:perceptual": "rank_e.shapes.perceptual:perceptual",
    "rank_e.shapes.judges:last_features": "rank_e.shapes.metrics:last_features",
    "rank_e.shapes.judges:middle_features": "rank_e.shapes.metrics:middle_features",
    "rank_e.shapes.judges:patch_places": "rank_e.shapes.metrics:patch_places",
    "rank_e.shapes.judges:clip_score": "rank_e.shapes.metrics:clip_score",
    "rank_e.shapes.judges:checker": "rank_e.shapes.metrics:checker",
}
"""Values of a `kind`, wherever it stands."""


def renamed(data: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Every key and kind of `data` that has another name by now; an arm's overrides included."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        found = ARM.match(name)
        arm = found.group() if found else ""
        if name.removeprefix(arm) in KEYS:
            yield f"{name} is now {arm}{KEYS[name.removeprefix(arm)]}"
        elif key == "kind" and isinstance(value, str) and value in KINDS:
            yield f"{name}: {value} is now {KINDS[value]}"
        elif isinstance(value, Mapping):
            yield from renamed(value, f"{name}.")
