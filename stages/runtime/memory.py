"""What a GPU's memory does not hold is computed again in halves: the same samples, fewer of them at once."""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rank_e.config import DecoderParams, EvaluationParams, PolicyParams, SftParams

Trained = TypeVar("Trained", SftParams, PolicyParams, DecoderParams)


@dataclass
class Memory:
    """How often this stage's number of samples at once has been halved, and what was asked for since.

    Halving moves memory alone: minibatches, the steps' random streams and what a step computes stay, up to rounding.
    """

    halvings: int = 0
    largest: int = 0

    def at_once(self, samples: int) -> int:
        """How many samples to hold at once where the params say `samples`; at least 1."""
        fitting = max(1, samples >> self.halvings)
        self.largest = max(self.largest, fitting)
        return fitting

    def microbatched(self, params: Trained) -> Trained:
        """The params of an update with the microbatches that fit."""
        return params.model_copy(update={"microbatch_size": self.at_once(params.microbatch_size)})

    def batched(self, params: EvaluationParams) -> EvaluationParams:
        """The params of an evaluation with the batches that fit."""
        return params.model_copy(update={"batch_size": self.at_once(params.batch_size)})

    def run(self, title: str, run: Callable[[], None]) -> None:
        """Call `run` until the memory holds it; torch.OutOfMemoryError where not even one sample fits.

        Each further call goes on from the stage's last saved state, as one that was killed does.
        """
        while True:
            self.largest = 0
            try:
                run()
                return
            except RuntimeError as error:
                if not _out_of_gpu_memory(error) or self.largest <= 1:
                    raise
                self.halvings += 1
            # Here the failed call's frames are gone, and with them its tensors.
            gc.collect()
            sys.modules["torch"].cuda.empty_cache()
            fewer = self.largest // 2
            line = f"{title}: out of GPU memory with {self.largest} samples at once; again with {fewer}"
            print(line, file=sys.stderr, flush=True)


def _out_of_gpu_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")  # a stage that does not compute never imports it
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
