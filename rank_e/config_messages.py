"""Problems of a params file in words: `key = value: must be ...`, the range read off the schema."""

import json
import re
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import ErrorDetails


def line(model: type[BaseModel], problem: ErrorDetails, prefix: tuple[str, ...]) -> str:
    """One problem of pydantic's as `key = value: must be ...`."""
    location = [part for part in problem["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in (*prefix, *location))
    if problem["type"] == "extra_forbidden":
        known = ", ".join(_properties(model, location[:-1]))
        return f"{key} = {show(problem['input'])}: unknown key, allowed here: {known}"
    allowed = _allowed(model, location, names="[key]" in problem["loc"])
    if problem["type"] == "missing":
        return f"{key} is missing: must be {allowed}"
    return f"{key} = {show(problem['input'])}: must be {allowed}"


def _node(model: type[BaseModel], location: list[int | str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON schema of the value at `location`, and the definitions that it may refer to."""
    schema = TypeAdapter(model).json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    node = schema
    for part in location:
        if isinstance(part, int):
            node = node["items"]
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            patterns: dict[str, Any] = node.get("patternProperties", {})
            node = node.get("additionalProperties") or (list(patterns.values()) or [{}])[0]
        if "$ref" in node:
            node = definitions[node["$ref"].removeprefix("#/$defs/")]
    return node, definitions


def _properties(model: type[BaseModel], location: list[int | str]) -> list[str]:
    return list(_node(model, location)[0].get("properties", {}))


def _allowed(model: type[BaseModel], location: list[int | str], names: bool = False) -> str:
    """In words, what the schema allows at `location`: the type and its range."""
    if names:
        return "a name of lower-case letters, digits and _, starting with a letter"
    node, _ = _node(model, location)
    if "const" in node:
        return json.dumps(node["const"])
    if "enum" in node:
        return " or ".join(node["enum"])
    if node.get("type") == "object":
        inside = ", ".join(node.get("properties", {}))
        return f"a mapping of {inside}" if inside else "a mapping"
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


def show(value: Any) -> str:
    """A found value on one line, shortened."""
    text = re.sub(r"\s+", " ", json.dumps(value, default=str))
    return text if len(text) <= 80 else text[:77] + "..."
