"""Where a run comes from, in tags that group runs: its params in a word, the profiles that have them, the revision."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.tracking.lineage import Made
from pipeline.tracking.points import plain_params
from rank_e.config import ConfigError, Params
from rank_e.config.profiles import load_profile
from stages.runtime.usage import read_usage


def describe(project: Path, arm: str, params: Mapping[str, str]) -> dict[str, str]:
    """Tags for the parameters of a run: a digest, and the profiles of the project that have all of these."""
    digest = hashlib.sha256(json.dumps(dict(params), sort_keys=True).encode()).hexdigest()[:12]
    own = {name: value for name, value in params.items() if name not in ("arm", "seed", "round")}
    names = [name for name, values in _profiles(project, arm).items() if own.items() <= values.items()]
    return {"params_digest": digest, "profile": ", ".join(names) or "none"}


@cache
def _profiles(project: Path, arm: str) -> dict[str, dict[str, str]]:
    """The parameters of each profile that has this arm, as its artifacts would say them."""
    found = {}
    for name, params in _loaded(project).items():
        if not arm or arm in params.arms:
            merged = params.model_dump(mode="json") | (params.arm(arm).model_dump(mode="json") if arm else {})
            found[name] = plain_params(merged)
    return found


@cache
def _loaded(project: Path) -> dict[str, Params]:
    """The project's profiles; one that somebody is at work on is no run's yet."""
    found = {}
    for path in sorted((project / "profiles").glob("*.yaml")):
        with suppress(ConfigError):
            found[path.stem] = load_profile(path)
    return found


def usage_of(project: Path, made: Made) -> dict[str, Any]:
    """What the stage that wrote a round's artifact has cost; nothing where nobody knows, as of one from a cache."""
    path = project / ".rank-e" / "usage" / f"{'-'.join([made.path.name, *made.path.parts[1:-1]])}.json"
    usage = read_usage(path)
    return usage if usage is not None and usage.get("artifact") == made.sha256 else {}
