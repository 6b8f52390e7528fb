"""The terms of L_D and their gradients at the decoder's output, over a batch of which a microbatch's graph is held."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from rank_e.objectives.decoder_loss import Term, Weights, decoder_loss
from rank_e.training.microbatched import joined

Means = tuple[dict[Term, Tensor], dict[str, Tensor]]
"""Terms with a graph, and further scalars for the log: means over one microbatch."""


class TermGradients:
    """What the images of one kind, leaves of one microbatch each, decide of L_D.

    `terms`: scalars, means over the batch; `logged`: further ones for the log. Where one microbatch holds the batch the
    terms keep their graph, else the gradient of each at the images is kept in its place.
    """

    def __init__(
        self, images: Sequence[Tensor], means_of: Callable[[Tensor, slice], Means], measured: Collection[Term]
    ) -> None:
        """means_of(images, rows) of a microbatch, rows `rows` of the batch; measured: terms for `at_output`."""
        self.images, self.whole = images, len(images) == 1
        self.terms: dict[Term, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self._gradients: list[dict[Term, Tensor]] = []
        total, start = sum(map(len, images)), 0
        for leaf in images:
            means, logged = means_of(leaf, slice(start, start + len(leaf)))
            share, start = len(leaf) / total, start + len(leaf)
            shares = {name: share * mean for name, mean in means.items()}
            asked = [name for name in shares if name in measured or not self.whole]
            self._gradients.append(
                {name: torch.autograd.grad(shares[name], leaf, retain_graph=True)[0] for name in asked}
            )
            for name, term in shares.items():
                kept = term if self.whole else term.detach()
                self.terms[name] = self.terms[name] + kept if name in self.terms else kept
            for key, mean in logged.items():
                self.logged[key] = self.logged.get(key, 0.0) + share * mean.detach()

    def at_output(self, name: Term) -> list[Tensor]:
        """The gradient of a term that is on and measured, by microbatch."""
        return [gradients[name] for gradients in self._gradients]

    def at_output_joined(self, name: Term) -> Tensor | None:
        """The same in one tensor [N, 3, H, W]; None for a term that is off."""
        return joined(self.at_output(name)) if name in self.terms else None

    def weighted(self, weights: Weights) -> list[Tensor]:
        """The gradient of the terms' weighted sum at the images, by microbatch; once."""
        if self.whole:  # the weights at the losses, as one backward pass has them
            return list(torch.autograd.grad(decoder_loss(self.terms, weights), self.images))
        return [_weighted_sum(gradients, weights) for gradients in self._gradients]


def _weighted_sum(gradients: Mapping[Term, Tensor], weights: Weights) -> Tensor:
    return reduce(torch.add, [weights[name] * gradient for name, gradient in gradients.items()])
