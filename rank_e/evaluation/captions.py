"""Real images' features by caption, so that any choice of captions has its moments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rank_e.evaluation.base import EvaluationError
from rank_e.evaluation.estimates import ShardSums
from rank_e.evaluation.frechet import Moments
from rank_e.evaluation.stream import ImageStream

_HEADER, _SUMS = "captions", ("centre", "counts", "sums", "scatters")


@dataclass(frozen=True)
class CaptionSums:
    """For each of C captions its own shard of `sums`: counts [C], sums [C, D], scatters [C, D, D], float64."""

    captions: list[str]
    sums: ShardSums

    @classmethod
    def of(
        cls, stream: ImageStream, name: str, prompts: Sequence[str], least: int, device: torch.device | None = None
    ) -> CaptionSums:
        """Of the captions that may be kept: those `least` times among `prompts`. C * D^2 * 8 bytes.

        device: where the features are summed; the sums lie on the CPU.
        EvaluationError names one of which the stream has no real image.
        """
        captions = sorted(caption for caption, count in Counter(prompts).items() if count >= least)
        places = {caption: place for place, caption in enumerate(captions)}
        shown = [caption for _, columns in stream.rows("prompt") for caption in columns["prompt"].tolist()]
        if missing := places.keys() - set(shown):
            raise EvaluationError(
                f"evaluation.matched: none of the {len(shown)} real images has the caption {min(missing)!r}; raise "
                "evaluation.reference_images, or write matched: null where real images have captions of their own"
            )
        shard_of = torch.tensor([places.get(caption, -1) for caption in shown])
        return cls(captions, ShardSums.placed(stream, name, shard_of, len(captions), device).to(torch.device("cpu")))

    def moments(self, captions: Iterable[str]) -> Moments:
        """Moments of the real images of these captions."""
        places = [self.captions.index(caption) for caption in captions]
        sums = self.sums
        return ShardSums(sums.centre, sums.counts[places], sums.sums[places], sums.scatters[places]).moments()


def save_captions(path: Path, found: Mapping[str, CaptionSums]) -> None:
    """Write the sums of several distances, of the same captions, as one safetensors file; captions in its header."""
    tensors = {f"{name}/{key}": getattr(own.sums, key) for name, own in found.items() for key in _SUMS}
    header = {name: own.captions for name, own in found.items()}
    save_file(tensors, path, metadata={_HEADER: json.dumps(header, sort_keys=True)})


def load_captions(path: Path, names: Collection[str]) -> dict[str, CaptionSums]:
    """Read what `save_captions` wrote of these distances; EvaluationError if it is missing, damaged or lacks one."""
    if not path.is_file():
        raise EvaluationError(f"{path} does not exist; compute the reference statistics again")
    try:
        with safe_open(path, framework="pt") as file:
            captions = json.loads((file.metadata() or {})[_HEADER])
            return {
                name: CaptionSums(captions[name], ShardSums(*(file.get_tensor(f"{name}/{key}") for key in _SUMS)))
                for name in names
            }
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise EvaluationError(f"{path} is damaged or lacks one of {', '.join(names)}; compute it again") from None
