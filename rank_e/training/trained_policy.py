"""A policy's weights in training, as the policy update and supervised fine-tuning share them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rank_e.config import PolicyParams, SftParams
from rank_e.training.ema import ema_update
from rank_e.training.masters import Masters
from rank_e.training.optimizer import NamedAdamW
from rank_e.training.update import UpdateState


class TrainedPolicy:
    """Float32 masters of the online weights, moved by AdamW on gradients added up over microbatches, and their EMA.

    Matrices are decayed, gains and biases are not.
    """

    def __init__(self, section: str, online: Masters, average: Masters, params: PolicyParams | SftParams) -> None:
        """section: where `params` stands in `params.yaml`. average has the names of online."""
        self.online, self.average, self.params = online, average, params
        key = f"{section}.learning_rate"
        self.optimizer = NamedAdamW(key, online.named, params.learning_rate, params, decay_vectors=False)

    def accumulate(self, rows: Tensor, loss_of: Callable[[Tensor], Tensor]) -> float:
        """Gather the gradient of the loss over `rows`, a microbatch at a time; returns that loss.

        loss_of(microbatch) is the microbatch's share of the loss, a scalar. Its size only costs or saves memory.
        """
        self.optimizer.zero_grad()
        losses = []
        for microbatch in rows.split(self.params.microbatch_size):
            loss = loss_of(microbatch)
            loss.backward()
            self.online.collect()
            losses.append(loss.detach())
        # Read together at the end: no microbatch waits for the one before it.
        return sum(torch.stack(losses).tolist())

    def step(self, number: int, learning_rate: float | None = None) -> float:
        """Move the weights and, when due, their average; returns the gradient's norm before clipping.

        number counts the steps of all rounds, from 0. RankEError for a gradient that is not finite; nothing has moved
        then.
        """
        norm = self.optimizer.step(number, learning_rate)
        self.online.publish()
        if (number + 1) % self.params.ema_every == 0:
            ema_update(dict(self.average.named), dict(self.online.named), self.params.ema_decay)
            self.average.publish()
        return norm

    def state(self) -> UpdateState:
        """online, ema and optimizer, float32, where they lie: no copies."""
        return {"online": self.online.tensors(), "ema": self.average.tensors(), "optimizer": self.optimizer.state()}

    def load(self, state: UpdateState) -> None:
        """Go on from a `state()`; RankEError names what is missing. An empty optimizer is that of the first step."""
        self.online.load(state["online"])
        self.average.load(state["ema"])
        self.optimizer.load(state["optimizer"])
