"""What one more image takes of memory in a decoder update at published sizes, counted without a GPU.

    python -m benchmarks.decoder_memory

LlamaGen's VQ-16 at 256 pixels, PatchGAN, LPIPS, CLIP ViT-L/14, bfloat16, the adaptive rule; random weights. Every
tensor that an operation makes counts from then until it is freed; weights that were there before do not, nor does what
a library takes for itself. Steps of 1 + 1 and of 2 + 2 images in one microbatch: their difference is what one more of
each takes. A few minutes; writes benchmarks/results/decoder-memory-<date>.json.
"""

from __future__ import annotations

import argparse
import gc
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu import HALF, PROFILE
from benchmarks.measuring import RESULTS, Report, Row
from benchmarks.networks import PUBLISHED, SMALL, clip_reward, decoder_nets, lpips, ranked_images, tokenizer
from rank_e.config import load
from rank_e.rewards.mixture import Mixture, Term
from rank_e.training.decoder_update import DecoderUpdate


class Living(TorchDispatchMode):
    """Bytes of the tensors that operations within the block have made and nobody has freed, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, place: int) -> None:
        self.bytes -= self._known.pop(place)


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="toy sizes: whether the script works")
    given = parser.parse_args()
    device, sizes = torch.device("cpu"), SMALL if given.small else PUBLISHED
    settings = load(PROFILE).arm("coevolved").decoder
    report = Report("decoder-memory", device, given.output)
    reward = Mixture({"clip": Term(clip_reward(sizes, device))}, HALF)
    vq, perceptual = tokenizer(sizes, device), lpips(device)
    peaks: list[float] = []
    for count in (1, 2):
        changes = {"rollouts_per_step": count, "reals_per_step": count, "microbatch_size": count}
        params = settings.model_copy(update=changes | {"discriminator_start": 0})
        nets, images = decoder_nets(vq, reward, perceptual, device), ranked_images(sizes.tokenizer, 4)
        update = DecoderUpdate(nets, images, params, 0, 1, 1000, dtype=HALF)
        update.step(0)  # the optimisers' moments are there from the first step on
        gc.collect()
        with Living() as living:
            update.step(1)
        peaks.append(living.peak / 1e9)
        report.add(Row(f"decoder update, {count} + {count} images", memory=round(peaks[-1], 3)))
    more = round(peaks[1] - peaks[0], 3)
    report.add(Row("one more of each", memory=more, note="what a step's peak grows by"))


if __name__ == "__main__":
    main()
