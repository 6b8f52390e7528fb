"""Everything that `params.yaml` names by its `kind`: a line for each built-in, with its factory and its keys.

A kind with a colon is a dotted path of the user's own, `package.module:factory`, with whatever further keys its factory
takes. Built-in or own, a thing is made alike: factory(folder, device, **keys), where folder holds the weights
(see `rank_e.io.plugins`). The checks before a run, the code lists and the builders all read these tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Union

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from rank_e.config.types import Count, Section, Text

OWN = "package.module:factory"
"""What stands for the user's own in lists of kinds."""
DottedPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class Needs(NamedTuple):
    """Marks a key that names what must lie in the weights' folder: a file, a Hugging Face folder, or a vocabulary."""

    what: Literal["file", "folder", "vocabulary"]


File = Annotated[Text, Needs("file")]
Folder = Annotated[Text, Needs("folder")]
Vocabulary = Annotated[Text, Needs("vocabulary")]


class Kind(Section):
    """A thing that is made by a factory; subclasses say which keys are not the factory's."""

    factory: ClassVar[str] = ""
    """Dotted path of a built-in's factory."""
    common: ClassVar[frozenset[str]] = frozenset()
    """Keys that whoever builds the thing reads, and the factory does not get."""

    kind: str

    @property
    def path(self) -> str:
        """Dotted path of the factory."""
        return self.factory or self.kind

    @property
    def options(self) -> dict[str, Any]:
        """The keys that the factory gets."""
        return self.model_dump(exclude={"kind", *self.common})

    def needs(self) -> Iterator[tuple[str, str, str]]:
        """(key, what, value) of each key that names what must lie in the weights' folder."""
        for key, field in type(self).model_fields.items():
            for mark in field.metadata:
                if isinstance(mark, Needs):
                    yield key, mark.what, getattr(self, key)


class _Own(BaseModel):
    """The user's own: any further keys."""

    model_config = ConfigDict(extra="allow")


class RewardKind(Kind):
    """One reward of the mixture.

    weight: in the mixture.
    normalise: `running`: divided by its running standard deviation first.
    """

    common = frozenset({"weight", "normalise"})

    weight: Annotated[float, Field(ge=-1e6, le=1e6)]
    normalise: Literal["none", "running"]


def tag(value: Any) -> str | None:
    """The name of a section's kind; OWN for a dotted path."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return OWN if isinstance(kind, str) and ":" in kind else kind


def table(base: type[Kind], **builtins: tuple[str, dict[str, Any]]) -> Any:
    """The union of a table's kinds: name -> (dotted path of the factory, its keys), and the user's own.

    A key is a type where it must be given, and (type, default) where it may be left out.
    """
    models: list[Any] = []
    for name, (factory, keys) in builtins.items():
        fields: dict[str, Any] = {"kind": (Literal[name], ...)}
        fields |= {key: given if isinstance(given, tuple) else (given, ...) for key, given in keys.items()}
        model: Any = create_model(f"{base.__name__}_{name}", __base__=base, **fields)
        model.factory = factory
        models.append(Annotated[model, Tag(name)])
    own: Any = create_model(f"{base.__name__}_own", __base__=(base, _Own), kind=(DottedPath, ...))
    models.append(Annotated[own, Tag(OWN)])

    return Annotated[Union[tuple(models)], Discriminator(tag)]  # noqa: UP007 - the members are computed


OPENAI_L14, OPENAI_B32 = "ViT-L-14-quickgelu", "ViT-B-32-quickgelu"
_SIZE: dict[str, Any] = {"image_size": (Count, 256)}  # side in pixels to which every image is brought first
_CLIP: dict[str, Any] = {"file": File, "model": (Text, OPENAI_B32), **_SIZE}
_HEAD: dict[str, Any] = {"file": File, "clip_file": File, "model": (Text, OPENAI_L14)}
_PATCHES: dict[str, Any] = {"channels": Count, "layers": Annotated[int, Field(ge=1, le=8)]}
_FROZEN: dict[str, Any] = {"dinov3": Folder, "efficientnet": File, "efficientnet_name": Text}

if TYPE_CHECKING:  # what all kinds of a table have in common
    RewardParams = RewardKind
    DistanceParams = Kind
    ScoreParams = Kind
    PerceptualParams = Kind
    DiscriminatorParams = Kind
else:
    RewardParams = table(
        RewardKind,
        clip=("rank_e.rewards.clip:clip_reward", {"file": File, "model": (Text, OPENAI_L14)}),
        hpsv2=("rank_e.rewards.hpsv2:hpsv2_reward", {"file": File, "model": (Text, "ViT-H-14")}),
        aesthetic=("rank_e.rewards.aesthetic:aesthetic_reward", _HEAD),
        imagereward=("rank_e.rewards.imagereward:imagereward", {"file": File, "tokenizer": Vocabulary}),
    )
    DistanceParams = table(
        Kind,
        inception=("rank_e.evaluation.features:inception_features", {"file": File, **_SIZE}),
        dinov2=("rank_e.evaluation.features:dinov2_features", {"file": Folder, **_SIZE}),
        clip_features=("rank_e.evaluation.features:clip_features", _CLIP),
    )
    ScoreParams = table(Kind, clip_score=("rank_e.evaluation.scores:clip_score", _CLIP))
    PerceptualParams = table(Kind, lpips=("rank_e.training.lpips_vgg:lpips", {"file": File}))
    DiscriminatorParams = table(
        Kind,
        patchgan=("rank_e.training.patchgan:patchgan", _PATCHES),
        projected=(
            "rank_e.training.projected_discriminator:projected",
            {**_FROZEN, "image_size": Count, "channels": Count},
        ),
    )
