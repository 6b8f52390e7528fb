"""What the stages' loop asks of an update: the policy's, the decoder's and the supervised one."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

UpdateState = Mapping[str, Mapping[str, Tensor]]
"""All that an update moves: file of the artifact -> name -> tensor, such as online, ema and optimizer."""


class Update(Protocol):
    """One run of training steps over fixed data. A step depends on the state and on its index alone."""

    @property
    def first_step(self) -> int:
        """Index of the first step: 0, or below 0 where a warm-up comes first, which has no row in the log."""
        ...

    @property
    def steps(self) -> int:
        """Number of steps without the warm-up: the indices end at steps - 1."""
        ...

    @property
    def steps_before(self) -> int:
        """Steps of earlier rounds: the log numbers step `index` as steps_before + index."""
        ...

    def step(self, index: int) -> dict[str, float]:
        """Take step `index`; returns what the log says of it. RankEError for a gradient that is not finite."""
        ...

    def state(self) -> UpdateState:
        """All that moves: what a later `load` needs to go on with the same bits. It shares memory with what the
        next step moves: whoever keeps it beyond that copies it first."""
        ...

    def load(self, state: UpdateState) -> None:
        """Go on from a `state()`; further files in it are ignored. RankEError or KeyError names what is missing."""
        ...
