"""Prompts alone, and images with captions, from the files in which they are published."""

from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.pairs import Batch, PairSource
from rank_e.data.prompts import PromptRow, open_prompts
from rank_e.data.report import BadSample, BadSamples

__all__ = [
    "BadSample",
    "BadSampleError",
    "BadSamples",
    "Batch",
    "DataError",
    "PairSource",
    "PromptRow",
    "open_prompts",
]
