"""The terms of L_D and their gradients at the decoder's output; one graph is held at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.objectives.decoder_loss import Term, Weights
from rank_e.training.microbatched import joined

Means = Iterator[tuple[Term, Tensor, Mapping[str, Tensor]]]
"""One term after another: its name, its mean over one microbatch with a graph, and further scalars for the log."""


class TermGradients:
    """What the images of one kind, leaves of one microbatch each, decide of L_D.

    `terms`: scalars without a graph, means over the batch; `logged`: further ones for the log. A term's networks run
    backward once: what it weighs in the sum, which depends on the gradients of all, is laid on at the images.
    """

    def __init__(self, images: Sequence[Tensor], means_of: Callable[[Tensor, slice], Means]) -> None:
        """means_of(images, rows) of a microbatch, which is the batch's rows `rows`."""
        self.terms: dict[Term, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self._gradients: list[dict[Term, Tensor]] = []
        total, start = sum(map(len, images)), 0
        for leaf in images:
            share, rows = len(leaf) / total, slice(start, start + len(leaf))
            start = rows.stop
            gradients: dict[Term, Tensor] = {}
            for name, mean, logged in means_of(leaf, rows):
                # Here, before the next term's networks run: with its gradient a term's graph goes.
                gradients[name] = _gradient(name, share * mean, leaf)
                self.terms[name] = self.terms.get(name, 0.0) + share * mean.detach()
                for key, value in logged.items():
                    self.logged[key] = self.logged.get(key, 0.0) + share * value.detach()
            self._gradients.append(gradients)

    def at_output(self, name: Term) -> list[Tensor]:
        """The gradient of a term that is on, by microbatch."""
        return [gradients[name] for gradients in self._gradients]

    def at_output_joined(self, name: Term) -> Tensor | None:
        """The same in one tensor [N, 3, H, W]; None for a term that is off."""
        return joined(self.at_output(name)) if name in self.terms else None

    def weighted(self, weights: Weights) -> list[Tensor]:
        """The gradient of the terms' weighted sum at the images, by microbatch."""
        return [
            reduce(torch.add, [weights[name] * gradient for name, gradient in gradients.items()])
            for gradients in self._gradients
        ]


def _gradient(name: Term, mean: Tensor, images: Tensor) -> Tensor:
    """Of a term's mean in the images; RankEError where it has none, or not one of its own."""
    if mean.numel() != 1:
        raise RankEError(
            f"decoder: its term {name} is {list(mean.shape)} numbers, not one; give the mean over the images"
        )
    try:
        found = torch.autograd.grad(mean, images, allow_unused=True)[0] if mean.requires_grad else None
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RankEError(
            f"decoder: its term {name} shares a graph with a term before it, which is gone by now; compute each anew"
        ) from None
    if found is None:
        raise RankEError(
            f"decoder: its term {name} has no gradient in the images; compute it in torch, of the images that are given"
        )
    return found
