"""Which profile params.yaml is, and making it another one."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rank_e.config.profiles import load_profile, resolve
from rank_e.io.files import replacing

PROFILES = Path("profiles")


def profile_names(project: Path) -> list[str]:
    """The profiles that a project has."""
    return sorted(path.stem for path in (project / PROFILES).glob("*.yaml"))


ProfileName = Annotated[str, Field(json_schema_extra={"enum": profile_names(Path(__file__).parents[1])})]
"""A profile of this project; Prefect's form offers them."""


def write_profile(project: Path, name: str) -> Path:
    """Write the whole of a profile over params.yaml once it has proved valid; where the profile lies in the project."""
    path = PROFILES / f"{name}.yaml"
    load_profile(project / path)
    with replacing(project / "params.yaml") as file:  # a kill leaves the former one or this one
        file.write_text(resolve(project / path), encoding="utf-8")
    return path


def name_of(project: Path) -> str:
    """The profile that params.yaml holds word for word; `params.yaml` where it was edited."""
    text = (project / "params.yaml").read_text(encoding="utf-8")
    names = profile_names(project)
    found = (name for name in names if resolve(project / PROFILES / f"{name}.yaml") == text)
    return next(found, "params.yaml")
