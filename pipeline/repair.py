"""`rank-e repair`: find what is not what was written, in the artifacts and in DVC's cache, and remove it.

DVC hashes an object once, when it enters the cache, and links artifacts to it: bytes that rot later are in both, and
"is cached" restores them. So every object is hashed here and compared with its name. What is removed is made again by
the next run, from what is left.

A run does less before it begins, since its stages refuse what is damaged when they open it, and DVC restores nothing
that is (pipeline/dvc_restore.py): it reads the few files that have no manifest by which a stage would know. After a
stage has met damage, the next run reads everything.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.cache_objects import OBJECTS, holds
from pipeline.graph import no_repo
from rank_e.errors import RankEError
from stages.runtime.artifacts import MANIFEST, ArtifactError, SchemaError, read_artifact
from stages.runtime.manifests import cell_at, kind_at
from stages.runtime.stage import ARGUMENTS, artifact_path

OBJECT = "its object in DVC's cache is damaged"
DISTRUST = Path(".rank-e") / "distrust"
"""There from when a stage has met damage until everything was read."""


def repair(project: Path, cache: Path, beginning: bool = False) -> list[str]:
    """Remove damaged artifacts and cache objects, every file read once or twice; a line for each, and one for all.

    beginning: of a run, which reads the files without a manifest, or everything after `distrust`.
    """
    everything = not beginning or (project / DISTRUST).exists()
    folders = artifact_folders(project)
    alone = [
        path for folder in ("artifacts/code", "report") for path in (project / folder).rglob("*") if path.is_file()
    ]
    plain = {path.stat().st_ino for path in alone}
    stored = sorted(path for path in (cache / OBJECTS).glob("??/*") if path.is_file())
    objects = [path for path in stored if everything or path.stat().st_ino in plain]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rotten = [path for path, whole in zip(objects, pool.map(holds, objects), strict=True) if not whole]
        found = list(pool.map(_problem, folders)) if everything else [""] * len(folders)
    linked = {path.stat().st_ino for path in rotten}
    lines = []
    for folder, problem in zip(folders, found, strict=True):
        if problem or any(path.stat().st_ino in linked for path in folder.iterdir()):
            shutil.rmtree(folder)
            lines.append(f"removed {folder.relative_to(project)}: {problem or OBJECT}")
    for path in sorted(alone):
        if path.stat().st_ino in linked:
            path.unlink()
            lines.append(f"removed {path.relative_to(project)}: {OBJECT}")
    for path in rotten:
        path.unlink()
        lines.append(f"removed {path}: damaged in DVC's cache")
    if everything:
        (project / DISTRUST).unlink(missing_ok=True)
    if not everything and not objects:
        return lines
    artifacts = f"{len(folders)} artifacts and " if everything else ""
    checked = f"{artifacts}{len(objects)} objects of DVC's cache checked"
    return [*lines, f"{checked}, {f'{len(lines)} removed: `dvc repro` makes them again' if lines else 'all whole'}"]


def distrust(project: Path) -> None:
    """A stage has met damage: the next run reads everything before it begins."""
    (project / DISTRUST).parent.mkdir(exist_ok=True)
    (project / DISTRUST).touch()


def artifact_folders(project: Path) -> list[Path]:
    """Every folder below artifacts that is, by its place, an artifact."""
    lone = [project / artifact_path(kind) for kind in ("reference", "baseline")]
    cells = sorted(path for path in (project / "artifacts").rglob("*") if path.is_dir() and cell_at(path))
    return [path for path in (*lone, *cells) if path.is_dir() and kind_at(path) in ARGUMENTS]


def cache_folder(project: Path) -> Path:
    """DVC's cache of a project, wherever its configuration has it; RankEError where DVC cannot open the project."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(project))
    except DvcException as error:
        raise RankEError(f"{project.absolute()}: {no_repo(error)}") from None
    with repo:
        return Path(repo.cache.local.path).parents[len(OBJECTS.parts) - 1]


def _problem(folder: Path) -> str:
    """What is wrong with an artifact, "" where nothing is; one of older code is no damage."""
    try:
        if not (folder / MANIFEST).is_file():
            return f"{MANIFEST} is missing"
        read_artifact(folder, kind_at(folder), lineage=False).verify()
    except SchemaError:
        return ""
    except ArtifactError as error:
        return str(error).rpartition(": ")[0]
    return ""
