"""`rank-e repair`: find what is not what was written, in the artifacts and in DVC's cache, and remove it.

DVC hashes an object once, when it enters the cache, and links artifacts to it: bytes that rot later are in both, and
"is cached" restores them. So every object is hashed here and compared with its name. What is removed is made again by
the next run, from what is left.

A run does less before it begins, since its stages refuse what is damaged when they open it: it reads the objects that
it may restore, those that no artifact is a link to, and each of them once, as long as size, time and inode stay; and
those of the few files that have no manifest by which a stage would know. After a stage has met damage, the next run
reads everything.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rank_e.errors import RankEError
from rank_e.io.sealed import SealError, read_json, write_json
from stages.runtime.artifacts import MANIFEST, ArtifactError, SchemaError, read_artifact
from stages.runtime.manifests import cell_at
from stages.runtime.stage import ARGUMENTS, artifact_path

OBJECTS = Path("files") / "md5"  # below the cache's folder
OBJECT = "its object in DVC's cache is damaged"
KNOWN = Path(".rank-e") / "whole.json"
"""The objects of the cache that were whole when they were last read."""

State = list[int]
"""Size, time and inode of a file."""


def repair(project: Path, cache: Path, beginning: bool = False) -> list[str]:
    """Remove damaged artifacts and cache objects, every file read once or twice; a line for each, and a last one.

    beginning: of a run, which reads what it may restore and does not know yet, or everything after `distrust`.
    """
    states = {path: _state(path) for path in sorted((cache / OBJECTS).glob("??/*")) if path.is_file()}
    known = _known(project) if beginning else None
    folders = artifact_folders(project)
    alone = [
        path for folder in ("artifacts/code", "report") for path in (project / folder).rglob("*") if path.is_file()
    ]
    plain = {path.stat().st_ino for path in alone}
    objects = [
        path
        for path, state in states.items()
        if known is None or path.stat().st_ino in plain or _restorable(path, state, known)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rotten = [path for path, whole in zip(objects, pool.map(_holds, objects), strict=True) if not whole]
        found = list(pool.map(_problem, folders)) if known is None else [""] * len(folders)
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
    read, bad = set(objects), set(rotten)
    whole = {
        path.name: state
        for path, state in states.items()
        if path not in bad and (path in read or (known is not None and known.get(path.name) == state))
    }
    write_json(whole, project / KNOWN)
    artifacts = f"{len(folders)} artifacts and " if known is None else ""
    checked = f"{artifacts}{len(objects)} objects of DVC's cache checked"
    return [*lines, f"{checked}, {f'{len(lines)} removed: `dvc repro` makes them again' if lines else 'all whole'}"]


def distrust(project: Path) -> None:
    """A stage has met damage: nothing is known to be whole any more."""
    (project / KNOWN).unlink(missing_ok=True)


def _known(project: Path) -> dict[str, State] | None:
    """The objects that were whole, by name; None where that is not known."""
    try:
        found: dict[str, State] = read_json(project / KNOWN)
    except (SealError, FileNotFoundError):
        return None
    return found


def _state(path: Path) -> State:
    """Size, time and inode: as long as they stay, so do a file's contents, but for rot."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _restorable(path: Path, state: State, known: Mapping[str, State]) -> bool:
    """Whether DVC may take an object for an artifact that is not there, and nobody has read it since it was written."""
    return path.stat().st_nlink == 1 and known.get(path.name) != state


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
