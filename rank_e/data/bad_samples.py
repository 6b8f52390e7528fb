"""The account of samples that cannot be used: counted once each, named, and too many of them stop the run."""

from __future__ import annotations

from dataclasses import dataclass

from rank_e.data.errors import BadSampleError, DataError


@dataclass(frozen=True)
class BadSample:
    """One skipped sample: its index in the dataset, its file or tar member, and why."""

    index: int
    name: str
    reason: str


class BadSamples:
    """Skipped samples of `total`, of which at most `max_share` in [0, 1) may be bad.

    `where` names the dataset's parameters in errors.
    """

    def __init__(self, total: int, max_share: float, where: str = "data") -> None:
        if not 0 <= max_share < 1:
            raise DataError(f"{where}.max_bad_share is {max_share}; give a share of at least 0 and below 1")
        self.total = total
        self.max_share = max_share
        self.where = where
        self._rows: dict[int, BadSample] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, index: int, error: BadSampleError) -> None:
        """Count a sample, once however often it is met. DataError as soon as more than the share is bad."""
        self._rows.setdefault(index, BadSample(index, error.name, error.reason))
        if len(self) / self.total > self.max_share:  # divided: 29 of 100 are exactly the share 0.29
            first = self.rows()[0]
            raise DataError(
                f"{len(self)} of {self.total} samples cannot be used, more than {self.where}.max_bad_share = "
                f"{self.max_share:g}; one is {first.name}, which {first.reason}; fix the data or raise the share"
            )

    def rows(self) -> list[BadSample]:
        """The skipped samples by index."""
        return [self._rows[index] for index in sorted(self._rows)]
