"""A network's values on a batch at once, and its gradient a microbatch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor, nn


class Microbatched:
    """Runs `network` on `inputs` [N, ...], `size` rows at a time; a row's output must depend on that row alone.

    A batch of one microbatch runs once and keeps its graph. Of more, the outputs come without one, and `backward` runs
    each microbatch again, so that the graph of one is held at a time. `outputs`: leaves of a loss, one a microbatch.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        inputs: Tensor,
        size: int,
        first_pass: Callable[[], AbstractContextManager[None]] = torch.no_grad,
    ) -> None:
        """first_pass: what several microbatches first run under; one that keeps a last layer's graph is for `slope`."""
        self.network, self.inputs = network, inputs.split(size)
        self.whole = len(self.inputs) == 1
        with nullcontext() if self.whole else first_pass():
            self._outputs = [network(part) for part in self.inputs]
        self.outputs = [output.detach().requires_grad_() for output in self._outputs]

    def joined(self) -> Tensor:
        """The outputs of all rows in one tensor, through which the leaves get their gradients."""
        return joined(self.outputs)

    def slope(self, weight: nn.Parameter, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient at one of the network's weights, given those at the outputs; graphs are kept."""
        pairs = zip(self._outputs, gradients, strict=True)
        slopes = [torch.autograd.grad(output, weight, pull, retain_graph=True)[0] for output, pull in pairs]
        return reduce(torch.add, slopes)

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Add to the network's weights their gradients, given those at the outputs; once."""
        outputs, self._outputs = self._outputs, []
        if self.whole:
            outputs[0].backward(gradients[0])
            return
        outputs.clear()  # what a first pass has kept goes before a microbatch's graph comes
        for part, gradient in zip(self.inputs, gradients, strict=True):
            self.network(part).backward(gradient)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Microbatches in one tensor; one alone as it is, in its own layout."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
