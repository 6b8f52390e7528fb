"""Problems of a params file in words: `key = value: must be ...`, the range read off the schema."""

import json
import re
from collections.abc import Iterable
from functools import cache
from itertools import islice
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import ErrorDetails

from rank_e.config.kinds import OWN
from rank_e.errors import nearest

NAMED = 20
"""Keys that a line lists."""


def line(model: type[BaseModel], problem: ErrorDetails, prefix: tuple[str, ...]) -> str:
    """One problem of pydantic's as `key = value: must be ...`."""
    location = [part for part in problem["loc"] if part != "[key]"]
    node, shown = _node(model, location)
    key = join((*prefix, *shown))
    if problem["type"] == "extra_forbidden":
        known = list(_node(model, location[:-1])[0].get("properties", {}))
        meant = nearest(str(location[-1]), known)
        more = f" and {len(known) - NAMED} more (docs/parameters.md)" if len(known) > NAMED else ""
        allowed_here = f"{', '.join(known[:NAMED])}{more}"
        return f"{key} = {show(problem['input'])}: unknown key, allowed here: {allowed_here}{meant}"
    allowed = _allowed(node, names="[key]" in problem["loc"])
    if problem["type"] == "missing":
        return f"{key} is missing: must be {allowed}"
    return f"{key} = {show(problem['input'])}: must be {allowed}"


def allowed(model: type[BaseModel], location: list[int | str]) -> str:
    """In words, as an error says it, what the value at `location` in the section `model` may be."""
    return _allowed(_node(model, location)[0])


def _node(model: type[BaseModel], location: list[int | str]) -> tuple[dict[str, Any], list[int | str]]:
    """The JSON schema of the value at `location`, and the location as the file has it.

    Where a section is one of several kinds, pydantic's location names the kind too; the file has no such level.
    """
    schema = _schema(model)
    definitions = schema.get("$defs", {})
    node, shown = schema, []
    for part in location:
        if node.get("words"):  # pydantic also names the choice that did not fit
            break
        if "oneOf" in node:
            node = _kinds(node, definitions)[str(part)]
            continue
        shown.append(part)
        if isinstance(part, int):
            node = node["items"]
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            patterns: dict[str, Any] = node.get("patternProperties", {})
            node = node.get("additionalProperties") or (list(patterns.values()) or [{}])[0]
        node = _resolve(node if isinstance(node, dict) else {}, definitions)
    return node, shown


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Computed once: a wrong file may have a hundred problems."""
    return TypeAdapter(model).json_schema(by_alias=True)


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What a node refers to; of a value, a word or null, the value, marked as such."""
    if "$ref" in node:
        return _resolve(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    if "oneOf" in node:
        return {**node, "kinds": list(_kinds(node, definitions))}
    if "anyOf" in node:
        value, *others = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
        words = [other["const"] for other in others]
        nullable = len(others) + 1 < len(node["anyOf"])
        return {**_resolve(value, definitions), "words": words, "nullable": nullable}
    return node


def _kinds(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a section of several kinds may be, by kind; the user's own stands under OWN."""
    choices = [_resolve(choice, definitions) for choice in node["oneOf"]]
    return {choice["properties"]["kind"].get("const", OWN): choice for choice in choices}


def _allowed(node: dict[str, Any], names: bool = False) -> str:
    """In words, what a schema's node allows: the type and its range."""
    if names:
        return "a name of lower-case letters, digits and _, starting with a letter"
    if node.get("nullable"):
        return f"{_allowed({**node, 'nullable': False})}, or null"
    if node.get("words"):
        return f"{_allowed({**node, 'words': []})}, or {' or '.join(node['words'])}"
    if "oneOf" in node:
        return f"a mapping with kind: {' or '.join(node['kinds'])}"
    if "const" in node:
        return json.dumps(node["const"])
    if "enum" in node:
        return " or ".join(node["enum"])
    if node.get("type") == "object":
        inside = ", ".join(node.get("properties", {}))
        fewest = node.get("minProperties", 0)
        own = f"a mapping of at least {fewest} by name" if fewest else "a mapping"
        return f"a mapping of {inside}" if inside else own
    if node.get("type") == "array":
        fewest, most = node.get("minItems"), node.get("maxItems")
        return f"a list of {fewest if fewest == most else f'at least {fewest}'}"
    if node.get("type") == "string":
        pattern = node.get("pattern")
        return f"text that matches {pattern}" if pattern else "text that is not empty"
    if node.get("type") == "boolean":
        return "true or false"
    low = f"[{node['minimum']}" if "minimum" in node else f"({node['exclusiveMinimum']}"
    high = f"{node['maximum']}]" if "maximum" in node else f"{node['exclusiveMaximum']})"
    kind = "a whole number" if node.get("type") == "integer" else "a number"
    return f"{kind} in {low}, {high}"


def join(parts: Iterable[str | int]) -> str:
    """The parts of a key with dots between them; one that is no plain word is escaped and shortened."""
    return ".".join(_plain(str(part)) for part in parts)


def _plain(part: str) -> str:
    if part.isprintable() and len(part) <= 60:
        return part
    shown = json.dumps(part)[1:-1]
    return shown if len(shown) <= 60 else shown[:57] + "..."


def show(value: Any) -> str:
    """A found value on one line, control characters escaped, shortened."""
    text = re.sub(r"\s+", " ", json.dumps(_beginning(value), default=str))
    return text if len(text) <= 80 else text[:77] + "..."


def _beginning(value: Any) -> Any:
    """What of a value can be seen in 80 characters, with keys as text."""
    if isinstance(value, dict):
        return {str(key): _beginning(inner) for key, inner in islice(value.items(), 40)}
    if isinstance(value, list | tuple | set):
        return [_beginning(inner) for inner in islice(value, 40)]
    return value[:100] if isinstance(value, str) else value
