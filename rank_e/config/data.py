"""The section `data` of `params.yaml`: where prompts and real images come from."""

from typing import Annotated, Literal

from pydantic import Field

from rank_e.config.types import BelowOne, Section, Text


class PromptFile(Section):
    """Prompts of their own: a file in the source's folder; a column is null where the file leaves no choice."""

    file: Text
    column: Text | None
    category: Text | None


class ShapesSource(Section):
    """The embedded world: prompts and images are drawn on demand; `folder` holds the code that draws them."""

    kind: Literal["shapes"]
    folder: Text
    split: Literal["train", "held_out"]


class Pairs(Section):
    """Images with captions in a folder; `prompts: null` takes the captions as prompts."""

    folder: Text
    prompts: PromptFile | None
    max_bad_share: BelowOne


class WebdatasetSource(Pairs):
    """Tars (`tars`, a pattern in the folder) of jpg, png or webp with txt or json; `column`: the caption's key."""

    kind: Literal["webdataset"]
    tars: Text
    column: Text | None


class FolderSource(Pairs):
    """Image files in the folder, and a table of their captions (`captions`, a file in the folder)."""

    kind: Literal["folder"]
    captions: Text
    column: Text | None
    image_column: Text | None


class CocoSource(Pairs):
    """COCO 2014's own layout; a sample is an image with its first caption, or with every caption one."""

    kind: Literal["coco"]
    split: Text
    every_caption: bool


Source = Annotated[ShapesSource | WebdatasetSource | FolderSource | CocoSource, Field(discriminator="kind")]


class DataParams(Section):
    """Where prompts and real images come from: `training` for the rounds, `held_out` for the evaluation."""

    training: Source
    held_out: Source
