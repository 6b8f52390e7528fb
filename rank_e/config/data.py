"""The section `data` of `params.yaml`: where prompts and real images come from."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Tag

from rank_e.config.kinds import OWN, DottedPath, Kind, tag
from rank_e.config.types import BelowOne, Pixels, Section, Text


class PromptFileParams(Section):
    """Prompts of their own.

    file: in the dataset's folder.
    column: of the prompts; null where the file leaves no choice.
    category: column of the categories; null: none.
    """

    file: Text
    column: Text | None
    category: Text | None


class FilesParams(Section):
    """Images with captions in a folder.

    folder: of the files.
    prompts: a file of prompts; null takes the captions.
    max_bad_share: share of the samples that may be bad, at most.
    max_image_pixels: width x height; a larger image is a bad sample.
    """

    folder: Text
    prompts: PromptFileParams | None
    max_bad_share: BelowOne
    max_image_pixels: Pixels


class WebdatasetParams(FilesParams):
    """Tars of jpg, png or webp with txt or json.

    tars: a pattern in the folder.
    column: the caption's key; null where the tars leave no choice.
    """

    kind: Literal["webdataset"]
    tars: Text
    column: Text | None


class FolderParams(FilesParams):
    """Image files in the folder, and a table of their captions.

    captions: the table, a file in the folder.
    column: of the captions; null where the file leaves no choice.
    image_column: of the images' names; null where the file leaves no choice.
    """

    kind: Literal["folder"]
    captions: Text
    column: Text | None
    image_column: Text | None


class CocoParams(FilesParams):
    """COCO 2014's own layout.

    split: such as `val2014`.
    every_caption: every caption of an image makes a sample; false: the first alone.
    """

    kind: Literal["coco"]
    split: Text
    every_caption: bool


class OwnDatasetParams(Kind):
    """A dataset of your own: factory(folder, image_size, **the other keys).

    folder: DVC watches it: what the dataset reads lies in it.
    """

    model_config = ConfigDict(extra="allow")
    common = frozenset({"folder"})

    kind: DottedPath
    folder: Text


DatasetParams = Annotated[
    Annotated[WebdatasetParams, Tag("webdataset")]
    | Annotated[FolderParams, Tag("folder")]
    | Annotated[CocoParams, Tag("coco")]
    | Annotated[OwnDatasetParams, Tag(OWN)],
    Discriminator(tag),
]


class DataParams(Section):
    """Where prompts and real images come from.

    training: for the rounds, of a kind below.
    held_out: for the evaluation, of a kind below.
    """

    training: DatasetParams
    held_out: DatasetParams

    @property
    def own(self) -> list[OwnDatasetParams]:
        """Those that a dotted path opens."""
        return [item for item in (self.training, self.held_out) if isinstance(item, OwnDatasetParams)]
