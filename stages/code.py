"""Stage code: what each stage is made of, so that a changed file re-runs those that use it and no others.

artifacts/code/<stage>.json, a stage's code list, maps every source file that decides a byte of its artifact to the
file's sha256. Each stage depends on its own: DVC sees one dependency instead of dozens, and a file that keeps its bytes
stops the change. DVC notices the change itself by the `deps` of this stage.
"""

import json
from pathlib import Path, PurePosixPath

from ruamel.yaml import YAML

from rank_e.config import Params
from rank_e.errors import RankEError
from rank_e.io.files import replacing
from stages.runtime.code_list import code_list, sources_of
from stages.runtime.stage import ARGUMENTS, Stage, main


def code_lists(project: Path, params: Params) -> dict[str, dict[str, str]]:
    """For each stage its code list; RankEError names every file whose change DVC would not notice."""
    sources = sources_of(project, params)
    found = {name: code_list(sources, name) for name in ARGUMENTS if name != "code"}
    pipeline = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text(encoding="utf-8"))
    watched = pipeline["stages"]["code"]["deps"]
    paths = sorted(set().union(*found.values()))
    unseen = [path for path in paths if not any(PurePosixPath(path).is_relative_to(dep) for dep in watched)]
    if unseen:
        fix = "its changes would go unseen; add it to the deps of the stage `code` in dvc.yaml"
        raise RankEError("\n".join(f"{path}: {fix}" for path in unseen))
    return found


def run(stage: Stage) -> None:
    """artifacts/code/: a file for each stage, whole or not there, the same bytes for the same code."""
    folder = stage.path("code")
    found = code_lists(Path(), stage.params)
    stage.check()
    for name, files in found.items():
        with replacing(folder / f"{name}.json") as file:
            file.write_text(json.dumps(files, sort_keys=True, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("code", run, computes=False)
