"""What a params file of schema 1 calls otherwise than this version: the old name and the new one, a line for each."""

from collections.abc import Iterator, Mapping
from typing import Any

KEYS = {
    "sft.pictures": "sft.images",
    "evaluation.pictures": "evaluation.images",
    "evaluation.reference_pictures": "evaluation.reference_images",
    "evaluation.real_pictures": "evaluation.real_images",
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
    """Every key and kind of `data` that has another name since schema 2."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if name in KEYS:
            yield f"{name} is now {KEYS[name]}"
        elif key == "kind" and value in KINDS:
            yield f"{name}: {value} is now {KINDS[value]}"
        elif isinstance(value, Mapping):
            yield from renamed(value, f"{name}.")
