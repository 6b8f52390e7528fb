"""What holds for every test."""

import pytest

from rank_e.io.verified import WEIGHTS


@pytest.fixture(autouse=True)
def findings_of_no_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage run in this process sets where its project keeps what was verified; this is another."""
    monkeypatch.setattr(WEIGHTS, "_folder", None)
