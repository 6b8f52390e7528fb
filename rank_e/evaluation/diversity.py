"""How much images of one prompt differ from each other: what a policy that only seeks reward gives up first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rank_e.evaluation.metric import Metric

DIVERSITY = "diversity"
"""Its key in metrics.json."""
HELD = 4096
"""Images whose features are in memory at a time (those of one caption are always together)."""


def diversity_metric(distance: Metric) -> Metric:
    """What diversity in the features of `distance` says of itself."""
    return Metric("Diversity", "nearer", f"distance of two images of one prompt, in the features of {distance.name}")


def diversity(captions: Sequence[str], features: Callable[[], Iterable[Tensor]], held: int = HELD) -> float | None:
    """Mean Euclidean distance of two images of one caption, each caption weighing as many as its images; None without.

    `features()` goes once more through the features of the N images in their order, parts of [n, D] or [n, P, D]; of
    P places their mean is taken. A caption with a single image is left out.
    """
    counts = {caption: count for caption, count in sorted(Counter(captions).items()) if count > 1}
    total = 0.0
    for group in _groups(counts, held):
        rows: dict[str, list[Tensor]] = {caption: [] for caption in group}
        start = 0
        for part in features():
            for caption, row in zip(captions[start : start + len(part)], part, strict=True):
                if caption in rows:
                    rows[caption].append(row.double().reshape(-1, row.shape[-1]).mean(0))
            start += len(part)
        total += sum(counts[caption] * float(torch.pdist(torch.stack(own)).mean()) for caption, own in rows.items())
    return total / sum(counts.values()) if counts else None


def _groups(counts: dict[str, int], held: int) -> Iterator[list[str]]:
    """The captions in groups of at most `held` images, or of one caption."""
    group: list[str] = []
    for caption, count in counts.items():
        if group and sum(counts[other] for other in group) + count > held:
            yield group
            group = []
        group.append(caption)
    if group:
        yield group
