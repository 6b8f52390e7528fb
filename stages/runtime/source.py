"""The prompts and real images that a stage draws from."""

from typing import Literal

from rank_e.data.source import Source
from rank_e.data.sources import open_source
from stages.runtime.stage import Stage


def source_of(stage: Stage, name: Literal["training", "held_out"], image_size: int) -> Source:
    """The source of `data.<name>`, its square images `image_size` pixels wide."""
    return open_source(getattr(stage.params.data, name), image_size, f"data.{name}")
