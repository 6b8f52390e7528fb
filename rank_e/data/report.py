"""The account of samples that cannot be used: counted once each, named, and too many of them stop the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rank_e.data.errors import BadSampleError, DataError


@dataclass(frozen=True)
class BadSample:
    """One skipped sample: its index in the source, its file or tar member, and why."""

    index: int
    name: str
    reason: str


class BadSamples:
    """Skipped samples of `total`; at most `max_share` of them in [0, 1) may be bad. `where` names the source."""

    def __init__(self, total: int, max_share: float, where: str = "data") -> None:
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

    def state(self) -> dict[str, Any]:
        """As plain JSON: total, max_share, and the rows by index. This is also the report to write."""
        return {"total": self.total, "max_share": self.max_share, "bad": [asdict(row) for row in self.rows()]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. DataError when it is of another number of samples."""
        if state["total"] != self.total:
            raise DataError(
                f"the report of bad samples is of {state['total']} samples, the data holds {self.total}; "
                "use the data that the run began with, or begin again"
            )
        self._rows = {row["index"]: BadSample(**row) for row in state["bad"]}
