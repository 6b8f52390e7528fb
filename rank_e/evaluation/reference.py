"""Statistics of real images, computed once: moments with the protocol, the network and the images they are of."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rank_e.evaluation.base import EvaluationError, FeatureNetwork
from rank_e.evaluation.captions import CaptionSums, load_captions
from rank_e.evaluation.estimates import ShardSums
from rank_e.evaluation.frechet import Moments
from rank_e.evaluation.stream import ImageStream
from rank_e.io.files import replacing

MATCHED = "matched.safetensors"
"""The file beside them with the real images' sums by caption."""
_HEADER = "reference"


@dataclass(frozen=True)
class Provenance:
    """protocol and sha256 (of the weights) of the network, data (a hash of the real images), their number, and the
    count of feature rows: that number times the places of an image.
    """

    protocol: str
    sha256: str
    data: str
    images: int
    count: int


@dataclass(frozen=True)
class Statistics:
    """Moments of real images' features (float64) and what they are of; with `captions` where a distance is matched."""

    moments: Moments
    provenance: Provenance
    captions: CaptionSums | None = None

    @classmethod
    def of(cls, stream: ImageStream, name: str, data: str, device: torch.device | None = None) -> Statistics:
        """From a stream over the real images; `data` is a hash that stands for them (and for their order).

        device: where the features are summed; the statistics lie on the CPU.
        """
        network = stream.features[name]
        moments = ShardSums.of(stream, name, 1, device).moments()
        return cls(moments, Provenance(network.protocol, network.sha256, data, stream.done, moments.n))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; provenance stands in its header."""
        tensors = {"mean": self.moments.mean.contiguous(), "cov": self.moments.cov.contiguous()}
        metadata = {_HEADER: json.dumps(asdict(self.provenance), sort_keys=True)}
        with replacing(Path(path)) as file:
            save_file(tensors, file, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, network: FeatureNetwork | None = None) -> Statistics:
        """Read a file of `save`; EvaluationError if it is missing, damaged, or of another protocol or other weights."""
        path = Path(path)
        if not path.is_file():
            raise EvaluationError(f"{path} does not exist; compute the reference statistics first")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in ("mean", "cov")}
            provenance = Provenance(**json.loads(header[_HEADER]))
        except (SafetensorError, KeyError, ValueError, TypeError):
            raise EvaluationError(f"{path} is damaged or holds no reference statistics; compute them again") from None
        if network is not None:
            for what, found, wanted in (
                ("protocol", provenance.protocol, network.protocol),
                ("weights", provenance.sha256, network.sha256),
            ):
                if found != wanted:
                    raise EvaluationError(f"{path} has {what} {found!r}, the evaluator {wanted!r}; compute it again")
        return cls(Moments(tensors["mean"], tensors["cov"], provenance.count), provenance)


def load_references(
    folder: Path, distances: Mapping[str, FeatureNetwork], matched: Collection[str] = ()
) -> dict[str, Statistics]:
    """Each distance's statistics NAME.safetensors, those of `matched` ones with what MATCHED holds of them.

    EvaluationError where they are missing, or of another network or protocol.
    """
    loaded = {name: Statistics.load(folder / f"{name}.safetensors", network) for name, network in distances.items()}
    captions = load_captions(folder / MATCHED, matched) if matched else {}
    return {name: replace(statistics, captions=captions.get(name)) for name, statistics in loaded.items()}
