"""The run as data: what `params.yaml` may hold, and how it is read and checked."""

from rank_e.config.decoder import DecoderParams
from rank_e.config.evaluation import EvaluationParams
from rank_e.config.loading import RESERVED_ARMS, ConfigError, Params, load, merge, parse
from rank_e.config.schema import ArmParams, PolicyParams, SftParams

__all__ = [
    "RESERVED_ARMS",
    "ArmParams",
    "ConfigError",
    "DecoderParams",
    "EvaluationParams",
    "Params",
    "PolicyParams",
    "SftParams",
    "load",
    "merge",
    "parse",
]
