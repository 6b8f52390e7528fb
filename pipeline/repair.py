"""`rank-e repair`: find what is not what was written, in the artifacts and in DVC's cache, and remove it.

DVC hashes an object once, when it enters the cache, and links artifacts to it: bytes that rot later are in both, and
"is cached" restores them. So every object is hashed here and compared with its name. What is removed is made again by
the next run, from what is left.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rank_e.errors import RankEError
from stages.runtime.artifacts import MANIFEST, ArtifactError, SchemaError, read_artifact
from stages.runtime.manifests import cell_at
from stages.runtime.stage import ARGUMENTS, artifact_path

OBJECTS = Path("files") / "md5"  # below the cache's folder
OBJECT = "its object in DVC's cache is damaged"


def repair(project: Path, cache: Path) -> list[str]:
    """Remove damaged artifacts and cache objects, every file read once or twice; a line for each, and a last one."""
    objects = sorted(path for path in (cache / OBJECTS).glob("??/*") if path.is_file())
    folders = artifact_folders(project)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rotten = [path for path, whole in zip(objects, pool.map(_holds, objects), strict=True) if not whole]
        found = list(pool.map(_problem, folders))
    linked = {path.stat().st_ino for path in rotten}
    alone = [path for folder in ("artifacts/code", "report") for path in sorted((project / folder).rglob("*"))]
    lines = []
    for folder, problem in zip(folders, found, strict=True):
        if problem or any(path.stat().st_ino in linked for path in folder.iterdir()):
            shutil.rmtree(folder)
            lines.append(f"removed {folder.relative_to(project)}: {problem or OBJECT}")
    for path in alone:
        if path.is_file() and path.stat().st_ino in linked:
            path.unlink()
            lines.append(f"removed {path.relative_to(project)}: {OBJECT}")
    for path in rotten:
        path.unlink()
        lines.append(f"removed {path}: damaged in DVC's cache")
    checked = f"{len(folders)} artifacts and {len(objects)} objects of DVC's cache checked"
    return [*lines, f"{checked}, {f'{len(lines)} removed: `dvc repro` makes them again' if lines else 'all whole'}"]


def artifact_folders(project: Path) -> list[Path]:
    """Every folder below artifacts that is, by its place, an artifact."""
    lone = [project / artifact_path(kind) for kind in ("reference", "baseline")]
    cells = sorted(path for path in (project / "artifacts").rglob("*") if path.is_dir() and cell_at(path))
    return [path for path in (*lone, *cells) if path.is_dir() and _kind(path) in ARGUMENTS]


def cache_folder(project: Path) -> Path:
    """DVC's cache of a project, wherever its configuration has it; RankEError where DVC cannot open the project."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(project))
    except DvcException as error:
        raise RankEError(f"{project.absolute()}: {error}; run it in a project's folder") from None
    with repo:
        return Path(repo.cache.local.path).parents[len(OBJECTS.parts) - 1]


def _holds(path: Path) -> bool:
    """Whether an object's contents have the hash that it is named by."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return digest == path.parent.name + path.name.removesuffix(".dir")


def _kind(folder: Path) -> str:
    """What an artifact's place says of its kind."""
    return "prompts" if folder.parts[-3:-2] == ("prompts",) else folder.name


def _problem(folder: Path) -> str:
    """What is wrong with an artifact, "" where nothing is; one of older code is no damage."""
    try:
        if not (folder / MANIFEST).is_file():
            return f"{MANIFEST} is missing"
        read_artifact(folder, _kind(folder), lineage=False).verify()
    except SchemaError:
        return ""
    except ArtifactError as error:
        return str(error).rpartition(": ")[0]
    return ""
