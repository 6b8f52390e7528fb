"""The section `data` of `params.yaml`: where prompts and real images come from."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Tag

from rank_e.config.kinds import OWN, DottedPath, Kind, tag
from rank_e.config.types import BelowOne, Pixels, Section, Text


class PromptFileParams(Section):
    """Prompts of their own: a file in the dataset's folder; a column is null where the file leaves no choice."""

    file: Text
    column: Text | None
    category: Text | None


class FilesParams(Section):
    """Images with captions in a folder; `prompts: null` takes the captions as prompts.

    At most `max_bad_share` of the samples may be bad; one of more than `max_image_pixels` (width x height) is.
    """

    folder: Text
    prompts: PromptFileParams | None
    max_bad_share: BelowOne
    max_image_pixels: Pixels


class WebdatasetParams(FilesParams):
    """Tars (`tars`, a pattern in the folder) of jpg, png or webp with txt or json; `column`: the caption's key."""

    kind: Literal["webdataset"]
    tars: Text
    column: Text | None


class FolderParams(FilesParams):
    """Image files in the folder, and a table of their captions (`captions`, a file in the folder)."""

    kind: Literal["folder"]
    captions: Text
    column: Text | None
    image_column: Text | None


class CocoParams(FilesParams):
    """COCO 2014's own layout; a sample is an image with its first caption, or with every caption one."""

    kind: Literal["coco"]
    split: Text
    every_caption: bool


class OwnDatasetParams(Kind):
    """A dataset that `kind: package.module:factory` opens: factory(folder, image_size, **the other keys).

    DVC watches the folder: what the dataset reads lies in it.
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
    """Where prompts and real images come from: `training` for the rounds, `held_out` for the evaluation."""

    training: DatasetParams
    held_out: DatasetParams

    @property
    def own(self) -> list[OwnDatasetParams]:
        """Those that a dotted path opens."""
        return [item for item in (self.training, self.held_out) if isinstance(item, OwnDatasetParams)]
