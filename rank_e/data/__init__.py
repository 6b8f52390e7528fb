"""Prompts alone, and images with captions, from the files in which they are published."""

from rank_e.data.dataset import CaptionedImage, Dataset, Originals
from rank_e.data.errors import BadSampleError, DataError
from rank_e.data.file_dataset import FileDataset
from rank_e.data.opening import open_dataset

__all__ = ["BadSampleError", "CaptionedImage", "DataError", "Dataset", "FileDataset", "Originals", "open_dataset"]
