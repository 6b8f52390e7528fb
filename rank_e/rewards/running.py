"""Running normalisation of a reward: by the mean and the spread of the scores of earlier batches."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import Any

from torch import Tensor

from rank_e.rewards.base import RewardError

MINIMUM_STD = 1e-6


class RunningNormaliser:
    """(score - mean) / std over all scores observed so far; until two are observed, the score as it is.

    Scores are added one after another in float64 (Welford, 1962), so that the statistics depend on their order
    alone, never on how they were cut into batches.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared deviations from the mean

    def observe(self, scores: Tensor) -> None:
        """Add scores [N], in order."""
        for score in scores.detach().flatten().tolist():
            self.count += 1
            change = score - self.mean
            self.mean += change / self.count
            self.squares += change * (score - self.mean)

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores [N] standardised, differentiably. RewardError if all observed scores were the same."""
        if self.count < 2:
            return scores
        std = sqrt(self.squares / (self.count - 1))
        if std < MINIMUM_STD:
            raise RewardError(
                f"rewards.{self.name}.normalise: all {self.count} observed scores are {self.mean:.6g}, so their spread "
                "cannot be scaled to 1; use none"
            )
        return (scores - self.mean) / std

    def state(self) -> dict[str, float | int]:
        """{count, mean, squares}: numbers that JSON keeps exactly."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`. RewardError for anything else."""
        numbers = [state.get(key) for key in ("count", "mean", "squares")] if isinstance(state, dict) else []
        valid = len(numbers) == len(state) and all(isinstance(n, (int, float)) and isfinite(n) for n in numbers)
        if not valid or not isinstance(numbers[0], int) or numbers[0] < 0:
            raise RewardError(f"rewards.{self.name}: its running state is {state!r}; give what state() returned")
        self.count, self.mean, self.squares = numbers[0], float(state["mean"]), float(state["squares"])
