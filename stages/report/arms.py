"""What the arms are told differently: the keys of params.yaml whose merged values are not the same in all of them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rank_e.config import Params
from stages.report.tables import data_table, escape, keyed


def differing(params: Params) -> dict[str, list[str]]:
    """{dotted key: each arm's value as JSON, in the order of the arms}; a dash where an arm has no such key."""
    arms = [dict(_flat(params.arm(name).model_dump(mode="json"))) for name in params.arms]
    keys = dict.fromkeys(key for arm in arms for key in arm)
    rows = {key: [json.dumps(arm[key]) if key in arm else "–" for arm in arms] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def arms_table(params: Params) -> str:
    """A row for each key that differs, a column for each arm."""
    found = differing(params)
    if not found:
        return "<p>Nothing: all arms are told the same.</p>"
    rows = [
        (f"<code>{escape(key)}</code>", [f"<code>{escape(text)}</code>" for text in row]) for key, row in found.items()
    ]
    return data_table("param", keyed(*params.arms), rows)
