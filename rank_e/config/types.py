"""The types of `params.yaml`'s values, and what all its sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=10_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=10_000_000)]
Pixels = Annotated[int, Field(ge=1, le=178_956_970)]  # Pillow opens no larger image
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
ArmName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1)]
Betas = Annotated[list[BelowOne], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    """A group of parameters: unknown keys and silent conversions ("3", true, 2.0 for 2) are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
