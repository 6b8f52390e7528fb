"""Reading a base's sizes, and what in its folder contradicts itself or the published model that it is named after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rank_e.backbones.info import BackboneInfo, Sizes, backbone_info
from rank_e.errors import RankEError
from rank_e.io.headers import Entry, read_header
from rank_e.io.manifest import BASE_FILE, parse_manifest, size_problems


def read_base(name: str, folder: Path) -> tuple[Sizes, list[str]]:
    """The sizes of the base in `folder` of the backbone called `name`, and what is wrong with the folder, a line each.

    RankEError for a manifest or a header that cannot be read at all.
    """
    info = backbone_info(name)
    manifest = parse_manifest(folder, info.format)
    headers = {stem: read_header(folder / f"{stem}.safetensors") for stem in ("policy", "tokenizer")}
    try:
        sizes = info.sizes(manifest, headers["policy"], headers["tokenizer"])
    except (KeyError, TypeError, ValueError):
        raise RankEError(f"backbone.base: {folder / BASE_FILE} lacks sizes; {info.format.fix}") from None
    return sizes, [
        *(f"backbone.base: {folder}: {line}" for line in _contradictions(info, sizes, headers)),
        *(f"backbone.base: {folder}: {line}" for line in _unlike_published(sizes, info.published, folder)),
        *size_problems(folder, manifest["files"], "backbone.base", info.format.fix),
        *info.problems(folder, manifest),
    ]


def published(name: str, folder: Path) -> Sizes | None:
    """The sizes of the published model that a folder of this name must hold; None for any other name."""
    return backbone_info(name).published.get(folder.name)


def _contradictions(info: BackboneInfo, sizes: Sizes, headers: Mapping[str, Mapping[str, Entry]]) -> Iterator[str]:
    """What in a base does not belong together."""
    fix = "make the base again from files that belong together"
    if sizes.length != sizes.grid**2:
        yield f"{sizes.length} tokens an image, but {sizes.image_size} pixels give {sizes.grid**2}; {fix}"
    if sizes.vocab != sizes.codes:
        yield f"the policy's vocabulary of {sizes.vocab} is not the tokenizer's codebook of {sizes.codes}; {fix}"
    for stem, said in (("policy", sizes.vocab), ("tokenizer", sizes.codes)):
        for name in info.tables[stem]:
            if name not in headers[stem]:
                yield f"{stem}.safetensors has no {name}; {info.format.fix}"
            elif (rows := headers[stem][name].shape[0]) != said:
                yield f"{name} has {rows} rows, {BASE_FILE} says {said}; {fix}"


def _unlike_published(sizes: Sizes, models: Mapping[str, Sizes], folder: Path) -> Iterator[str]:
    """Where a folder that is named after a published model holds another one."""
    if folder.name not in models:
        return
    for key, unit in (("image_size", "pixels"), ("length", "tokens"), ("layers", "layers"), ("dim", "wide")):
        value, wanted = getattr(sizes, key), getattr(models[folder.name], key)
        if value != wanted:
            fix = f"convert the published model to {folder}, or name the folder otherwise"
            yield f"{value} {unit}, {folder.name} has {wanted}; {fix}"
