"""Which profile params.yaml is, and making it another one."""

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rank_e.config.profiles import load_profile, resolve
from rank_e.io.files import replacing
from stages.runtime.stage import WORK

PROFILES = Path("profiles")
EDITED = WORK / "params"
"""Params files that another profile took the place of, where they were no profile word for word."""


def profile_names(project: Path) -> list[str]:
    """The profiles that a project has."""
    return sorted(path.stem for path in (project / PROFILES).glob("*.yaml"))


ProfileName = Annotated[str, Field(json_schema_extra={"enum": profile_names(Path(__file__).parents[1])})]
"""A profile of this project; Prefect's form offers them."""


def write_profile(project: Path, name: str) -> str:
    """Write the whole of a profile over params.yaml once it has proved valid; what was done in a line.

    A params.yaml that was edited is kept.
    """
    path, params = PROFILES / f"{name}.yaml", project / "params.yaml"
    load_profile(project / path)
    kept = ""
    if params.is_file() and name_of(project) == params.name:
        former = EDITED / f"{sha256(params.read_bytes()).hexdigest()[:12]}.yaml"
        (project / EDITED).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(params, project / former)
        kept = f"; the edited one is kept as {former}"
    with replacing(params) as file:  # a kill leaves the former one or this one
        file.write_text(resolve(project / path), encoding="utf-8")
    return f"params.yaml is now {path}{kept}"


def name_of(project: Path) -> str:
    """The profile that params.yaml holds word for word; `params.yaml` where it was edited."""
    text = (project / "params.yaml").read_bytes()
    names = profile_names(project)
    found = (name for name in names if resolve(project / PROFILES / f"{name}.yaml").encode() == text)
    return next(found, "params.yaml")
