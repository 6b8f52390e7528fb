"""The dataset that `params.yaml` names: files of a known layout, or a user's own by dotted path."""

from __future__ import annotations

from pathlib import Path

from rank_e.config.data import CocoParams, DatasetParams, FolderParams, OwnDatasetParams, WebdatasetParams
from rank_e.data.dataset import Dataset
from rank_e.data.errors import DataError
from rank_e.data.file_dataset import FileDataset
from rank_e.data.prompts import open_prompts
from rank_e.data.samples import Samples, open_coco, open_folder
from rank_e.data.webdataset import open_webdataset
from rank_e.io.plugins import call_factory


def open_dataset(section: DatasetParams, image_size: int, where: str) -> Dataset:
    """The dataset of a section of the parameters, its images `image_size` pixels wide.

    A dotted path `package.module:factory` is called as factory(folder, image_size, **the section's other keys) and
    returns a `Dataset`, for example a `FileDataset` over `Samples` of its own. DataError, naming `where`, for what is
    not there.
    """
    folder = Path(section.folder)
    if not folder.is_dir():
        raise DataError(f"{where}.folder: {folder} does not exist; put the data there or correct the path")
    if isinstance(section, OwnDatasetParams):
        wanted = (Dataset, "a rank_e.data.dataset.Dataset")
        made: Dataset = call_factory(where, section.path, folder, image_size, section.options, DataError, wanted)
        return made
    prompts = section.prompts
    rows = None if prompts is None else open_prompts(folder / prompts.file, prompts.column, prompts.category)
    samples = _samples(section, folder, where)
    return FileDataset(samples, image_size, rows, section.max_bad_share, where, section.max_image_pixels)


def _samples(section: WebdatasetParams | FolderParams | CocoParams, folder: Path, where: str) -> Samples:
    if section.kind == "webdataset":
        return open_webdataset(str(folder / section.tars), section.column, where)
    if section.kind == "folder":
        return open_folder(folder, folder / section.captions, section.column, section.image_column, where)
    return open_coco(folder, section.split, section.every_caption)
