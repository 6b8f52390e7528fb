"""How many images a distance is of: distances of different numbers of images say nothing of each other."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from rank_e.errors import RankEError


class SizeError(RankEError):
    """Distances that would be compared are of different numbers of images, or do not say of how many."""


class Size(NamedTuple):
    """The images of a distance and the real ones behind the statistics that it is to."""

    images: int
    real: int

    def __str__(self) -> str:
        return f"{self.images} images to {self.real} real ones"


def sizes(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Size | None]]:
    """(key, size) of every metric in an artifact's metrics, however deep; None for one that has no size.

    Matched distances are not among them: they are extrapolated, and of as many images as were accepted.
    """
    for key, entry in metrics.items():
        if not isinstance(entry, Mapping):
            continue
        if not isinstance(entry.get("value"), float | int):
            yield from sizes(entry)
        elif "captions" not in entry:
            yield key, Size(entry["images"], entry["real"]) if "real" in entry else None


def check_sizes(found: Mapping[str, Mapping[str, Any]], distances: Collection[str]) -> None:
    """SizeError unless each of the `distances` is of the same size in all artifacts; `found`: metrics by their path."""
    first: dict[str, tuple[str, Size]] = {}
    for path, metrics in found.items():
        for key, size in sizes(metrics):
            if key not in distances:
                continue
            if size is None:
                raise SizeError(f"{path}: {key} does not say of how many images it is; run `dvc repro`")
            place, known = first.setdefault(key, (path, size))
            if size != known:
                raise SizeError(
                    f"{place} and {path}: {key} is of {known}, and of {size}: such distances cannot be compared; run "
                    "`dvc repro`, which evaluates again what is of other params"
                )


def size_note(base: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """What a table of levels says where real images and reconstructions were measured at another size than the base."""
    other = dict(sizes(reference))
    for key, size in sizes(base):
        if size is not None and other.get(key) not in (None, size):
            return (
                f"Distances are of {size}, those of real images and reconstructions of {other[key]}: "
                "levels to look at, not to subtract."
            )
    return ""
