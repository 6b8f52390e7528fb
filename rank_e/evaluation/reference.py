"""Statistics of real images, computed once: moments with the protocol, the network and the images they are of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rank_e.evaluation.base import EvaluationError, FeatureNetwork
from rank_e.evaluation.frechet import Moments
from rank_e.evaluation.intervals import ShardSums
from rank_e.evaluation.stream import Stream
from rank_e.io.files import replacing

_HEADER = "reference"


@dataclass(frozen=True)
class Provenance:
    """protocol and source (sha256 of the weights) of the network, data (a hash of the real images), their count."""

    protocol: str
    source: str
    data: str
    count: int


@dataclass(frozen=True)
class Statistics:
    """Moments of real images' features (float64) and what they are of."""

    moments: Moments
    provenance: Provenance

    @classmethod
    def of(cls, stream: Stream, name: str, data: str) -> Statistics:
        """From a stream over the real images; `data` is a hash that stands for them (and for their order)."""
        network = stream.features[name]
        moments = ShardSums.of(stream, name, shards=1).moments()
        return cls(moments, Provenance(network.protocol, network.source, data, moments.n))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; provenance stands in its header."""
        tensors = {"mean": self.moments.mean.contiguous(), "cov": self.moments.cov.contiguous()}
        with replacing(Path(path)) as file:
            save_file(tensors, file, metadata={_HEADER: json.dumps(asdict(self.provenance), sort_keys=True)})

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
                ("weights", provenance.source, network.source),
            ):
                if found != wanted:
                    raise EvaluationError(f"{path} has {what} {found!r}, the judge {wanted!r}; compute it again")
        return cls(Moments(tensors["mean"], tensors["cov"], provenance.count), provenance)
