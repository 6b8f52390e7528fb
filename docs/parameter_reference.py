"""parameters.md: every key of params.yaml, from the annotations and docstrings of `rank_e/config`.

Beside each key stand the values of two profiles. Of what the page describes, the configuration alone is imported.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from rank_e.backbones import BACKBONES
from rank_e.config import Params
from rank_e.config.kinds import OWN, Kind, Needs
from rank_e.config.messages import allowed
from rank_e.config.profiles import load_profile
from rank_e.config.schema import BackboneParams

ROOT = Path(__file__).parents[1]
PROFILES = ("shapes", "llamagen-xl-clip")
"""Whose values stand beside each key: the demo's, and those with the paper's hyperparameters."""
FOLDERS = {"ranking": "training", "decoder": "training", "evaluation": "evaluation"}
"""The key of `weights` whose folder holds what the kinds of a section name."""
PARAMETERS = """# Parameters

Made from `rank_e/config` by `python -m docs.generated`. Every key stands in `params.yaml`: the code holds no default,
but for those keys of a kind that name one. *Demo* is `profiles/shapes.yaml`, *LlamaGen-XL* is
`profiles/llamagen-xl-clip.yaml` with the paper's hyperparameters. `rank-e profile NAME` writes a profile to
`params.yaml`, and `rank-e validate` names every wrong key with what is allowed. Arms override keys of `rollouts`,
`ranking`, `policy` and `decoder`.
"""


def parameters() -> str:
    """The text of parameters.md."""
    values = [load_profile(ROOT / f"profiles/{name}.yaml").model_dump(by_alias=True) for name in PROFILES]
    sections = {name: field for name, field in Params.model_fields.items() if _is_section(field.annotation)}
    lines = [PARAMETERS, "## The run", "", *_section_table(Params, values, without=set(sections))]
    for name, field in sections.items():
        model: type[BaseModel] = field.annotation  # type: ignore[assignment]
        lines += ["", f"## {name}", "", described(model)[0], ""]
        lines += _section_table(model, [value[name] for value in values])
        if model is BackboneParams:
            lines += ["", f"Registered are {', '.join(f'`{known}`' for known in sorted(BACKBONES))}."]
        found: set[str] = set()
        for place, kinds in _kinds(model, name):
            if (key := " ".join(kind.__name__ for kind in kinds)) not in found:
                folder = f"Files and folders lie in `weights.{FOLDERS[name]}`." if name in FOLDERS else ""
                lines += ["", f"### Kinds of {place}", "", folder, "", *_kind_tables(kinds)]
            found.add(key)
    return "\n".join(lines) + "\n"


def described(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """The summary of a section's docstring, and the meaning of each key that a `key: meaning` in it describes.

    Keys of the classes that it is made of count too; a longer meaning goes on in deeper lines.
    """
    meanings: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if part is BaseModel or not issubclass(part, BaseModel):
            continue
        prose, entry = [], ""
        fields = {field.alias or name for name, field in part.model_fields.items()}
        for line in (part.__doc__ or "").splitlines():
            names, colon, meaning = line.strip().partition(": ")
            if colon and set(names.split(", ")) <= fields:
                entry = names
                meanings |= dict.fromkeys(names.split(", "), meaning)
            elif entry and line.startswith(" " * 8):
                meanings |= {name: f"{meanings[name]} {line.strip()}" for name in entry.split(", ")}
            else:
                prose.append(line.strip())
    return "\n".join(prose).strip(), meanings


def undescribed(model: type[BaseModel]) -> set[str]:
    """The keys of a section that its docstring says nothing of; sections and kinds speak for themselves."""
    spoken = {name for name, field in model.model_fields.items() if _is_section(field.annotation)}
    return {field.alias or name for name, field in model.model_fields.items() if name not in spoken} - (
        {"kind"} | set(described(model)[1])
    )


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation is made of, in order."""
    if _is_section(annotation):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _has_kinds(models: list[type[BaseModel]]) -> bool:
    return any("kind" in model.model_fields for model in models)


def _rows(model: type[BaseModel], values: list[Any], prefix: str, without: set[str]) -> Iterator[list[str]]:
    """(key, meaning, allowed, value of each profile) of each key, those of sections within it after their own."""
    meanings = described(model)[1]
    for name, field in model.model_fields.items():
        if name in without:
            continue
        key, models = field.alias or name, _models(field.annotation)
        here = [value.get(key, ...) if isinstance(value, dict) else ... for value in values]
        yield [f"`{prefix}{key}`", meanings.get(key, ""), _escaped(allowed(model, [key])), *map(_shown, here)]
        below = {list: f"{key}.N.", dict: f"{key}.NAME."}.get(get_origin(field.annotation), f"{key}.")
        if not models:
            continue
        inner = here if below == f"{key}." else [...] * len(here)
        if not _has_kinds(models):
            yield from _rows(models[0], inner, prefix + below, set())
        elif issubclass(models[0], Kind):  # what all kinds have in common
            common = set(models[0].model_fields) - models[0].common
            yield from _rows(models[0], [...] * len(here), prefix + below, common)


def _section_table(model: type[BaseModel], values: list[Any], without: set[str] | None = None) -> list[str]:
    head = ["key", "what it is", "allowed", *("demo", "LlamaGen-XL")[: len(values)]]
    return table(head, _rows(model, values, "", without or {"kind"}))


def table(head: list[str], rows: Iterator[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _shown(value: Any) -> str:
    """A profile's value; nothing for a key that it has not, and for mappings, which have rows or kinds of their own."""
    if value is ... or isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict)):
        return ""
    values = value if isinstance(value, list) else [value]
    text = ", ".join(item if isinstance(item, str) else json.dumps(item) for item in values)
    return f"`{text}`"


def _escaped(text: str) -> str:
    return text.replace("|", "&#124;").replace("*", r"\*")


def _kinds(model: type[BaseModel], place: str) -> Iterator[tuple[str, list[type[BaseModel]]]]:
    """(key, its kinds) of each key that is of one of several kinds."""
    for name, field in model.model_fields.items():
        models = _models(field.annotation)
        named = get_origin(field.annotation) is dict
        if _has_kinds(models):
            yield f"{place}.{name}{'.NAME' if named else ''}", models


def _kind_tables(kinds: list[type[BaseModel]]) -> list[str]:
    """One table for built-ins that a factory makes, and one for each kind that is a section of its own."""
    lines: list[str] = []
    made = [kind for kind in kinds if issubclass(kind, Kind) and kind.factory]
    own = [kind for kind in kinds if issubclass(kind, Kind) and not kind.factory]
    for kind in kinds:
        if kind not in (*made, *own):
            name = get_args(kind.model_fields["kind"].annotation)[0]
            lines += [f"`kind: {name}`: {described(kind)[0]}", "", *_section_table(kind, []), ""]
    if made:
        rows = ([f"`{get_args(kind.model_fields['kind'].annotation)[0]}`", _made(kind), _keys(kind)] for kind in made)
        lines += [*table(["kind", "what it is", "keys"], iter(rows)), ""]
    if own:
        lines += [f"Or `kind: {OWN}`, one of your own with whatever keys it takes: [how](extending.md)."]
    return lines


def _keys(kind: type[Kind]) -> str:
    """A built-in's own keys in words."""
    words = []
    for key, field in kind.model_fields.items():
        if key == "kind" or key in kind.common:
            continue
        needs = [mark.what for mark in field.metadata if isinstance(mark, Needs)]
        what = f"a {needs[0]}" if needs else _escaped(allowed(kind, [key]))
        words.append(f"`{key}`: {what}" + ("" if field.is_required() else f" (`{field.default}` if left out)"))
    return "; ".join(words)


def _made(kind: type[Kind]) -> str:
    """The first paragraph of a factory's docstring."""
    module, _, name = kind.factory.partition(":")
    found = [node for node in tree_of(module).body if isinstance(node, ast.FunctionDef) and node.name == name]
    return " ".join((ast.get_docstring(found[0]) or "").partition("\n\n")[0].split())


def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def path_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
