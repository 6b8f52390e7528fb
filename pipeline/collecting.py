"""`rank-e gc`: what `pipeline.retention` finds is removed from the workspace, from DVC's cache and from a remote.

An artifact that loses files gets a list of them, `removed.json`, and is committed to DVC as it then is (`dvc commit`).
Its manifest stays, and that is what later stages depend on: `dvc status` has nothing to say, `dvc repro` nothing to do.
Last go the objects that nothing in dvc.lock refers to any more, with the run-cache's entries that would restore them. A
call that is killed is finished by the next one: the list says what must not be in a cache.
"""

import argparse
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.lock import LockError
from dvc.repo import Repo, lock_repo

from pipeline.dvc_writing import writing_whole
from pipeline.graph import load_graph
from pipeline.lock import owning
from pipeline.lock_text import lock_problem
from pipeline.remote import Remote, RemoteError, remote_of
from pipeline.retention import (
    Content,
    File,
    Keep,
    cost,
    described,
    files_to_drop,
    kept_rounds,
    read_dropped,
    read_keep,
    referenced,
    rounds_done,
)
from rank_e.config import Params, load
from rank_e.errors import RankEError
from rank_e.io.files import gigabytes, replacing
from stages.runtime.artifacts import REPAIR, ArtifactError
from stages.runtime.manifests import REMOVED, read_removed


@dataclass(frozen=True)
class Lost:
    """What the lists in the workspace say went: objects that no artifact has any more, and trees that had them."""

    objects: frozenset[str]
    trees: frozenset[str]


def collect_rounds(project: Path, arguments: argparse.Namespace) -> None:
    """`rank-e gc` as it was called: lines as things are found and done."""
    params, keep, dropped = load(), read_keep(arguments.keep), read_dropped(arguments.drop)
    with owning(project, "rank-e gc", arguments.wait):
        if problem := lock_problem(project):
            raise RankEError(problem)
        for line in collect(project, params, keep, dropped, arguments.remote, really=arguments.yes):
            print(line, flush=True)


def collect(
    project: Path, params: Params, keep: Keep, dropped: Sequence[str], remote: str | None, *, really: bool
) -> Iterator[str]:
    """Free what `keep` does not name, or only say what that would be, in lines; remote: of DVC, None for its default.

    To be called in the project's folder. RankEError where the remote fails, after everything here is free.
    """
    nodes = load_graph(project)
    with Repo(str(project), _wait_for_lock=True) as repo:
        store = remote_of(repo, remote)
        if store is not None and not store.found:
            if remote is not None:
                fix = "mount it, or see `dvc remote list`"
                raise RemoteError(f"remote {store.name}: nothing is at {store.place}: {fix}")
            yield f"remote {store.name}: nothing is at {store.place}, nothing there is freed"
            store = None
        stale = stale_stages(repo)
        content = contents(repo)
        kept = kept_rounds(params, keep, nodes, stale)
        files = files_to_drop(params, nodes, stale, kept, dropped, content)
        markers = _markers(repo)
        freed = {(n.chain, n.round) for n in nodes if n.chain and n.round is not None and n.address in markers}
        yield from described(kept, rounds_done(nodes, stale), files, freed)
        lost = lost_objects(repo, content, files)
        there = _sizes(repo, store, lost, files)
        sizes = ", ".join(f"{gigabytes(size)} in {place}" for place, size in there.items())
        yield f"together {sizes}"
        if files:
            yield cost(project, files)
        if not any(there.values()):
            yield "nothing to free"
            return
        if not really:
            yield "nothing was removed: --yes does it"
            return
        _remove(repo, files, stale)
        lost = lost_objects(repo, contents(repo), ())
        try:
            if store is not None:
                store.forget(sorted(_markers(repo)), lost.objects, lost.trees)
        finally:
            _forget_here(repo, lost)
        yield f"freed {sizes}"


def stale_stages(repo: Repo) -> set[str]:
    """The stages of dvc.yaml that are not as DVC would leave them; those that somebody works on are among them."""
    found = set()
    with lock_repo(repo):
        for stage in repo.index.stages:
            try:
                busy = Path(stage.path) != Path(repo.root_dir, "dvc.yaml") or stage.status()
            except LockError:
                busy = True
            if busy:
                found.add(stage.addressing)
    return found


def contents(repo: Repo) -> Content:
    """Every file of every output that dvc.lock has: hash and bytes.

    ArtifactError where a folder's list of files is not here: what others share with it could not be told.
    """
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for stage in repo.index.stages:
        for out in stage.outs:
            value = out.hash_info.value if out.hash_info else None
            if value is None:
                continue
            if not out.hash_info.isdir:
                found[out.def_path] = {"": (value, out.meta.size or 0)}
                continue
            folder, entries = Path(out.fs_path), _tree(repo, value, out.def_path)
            found[out.def_path] = {
                entry["relpath"]: (entry["md5"], _bytes(folder / entry["relpath"])) for entry in entries
            }
    return found


def _tree(repo: Repo, oid: str, place: str) -> list[dict[str, str]]:
    """What a folder's object says."""
    path = Path(repo.cache.local.oid_to_path(oid))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [{"relpath": entry["relpath"], "md5": entry["md5"]} for entry in found]
    except FileNotFoundError:
        fix = "`dvc fetch` brings it, or `rank-e run` makes it again"
        raise ArtifactError(f"{place}: DVC's cache has no list of its files; {fix}") from None
    except (ValueError, TypeError, KeyError):
        raise ArtifactError(f"{path} is damaged in DVC's cache: {REPAIR}") from None


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def lost_objects(repo: Repo, content: Content, files: Sequence[File]) -> Lost:
    """Of what was removed earlier, or is about to be, that which nothing recorded refers to."""
    going = {(file.folder, file.name) for file in files}
    objects, trees = {file.md5 for file in files}, set[str]()
    for marker in _markers(repo).values():
        said = _removed(marker)
        objects |= set(said["files"].values())
        trees |= set(said["trees"])
    now = {out.hash_info.value for stage in repo.index.stages for out in stage.outs if out.hash_info}
    return Lost(frozenset(objects - set(referenced(content, going))), frozenset(trees - now))


def _removed(marker: Path) -> dict[str, Any]:
    """A list of removed files; ArtifactError where it is damaged: by what it says, files are removed."""
    try:
        return read_removed(marker)
    except ValueError as error:
        raise ArtifactError(f"{marker} is damaged ({error}): {REPAIR}") from None


def _markers(repo: Repo) -> dict[str, Path]:
    """The lists of removed files that are there, by their stage's address."""
    outs = ((stage.addressing, Path(out.fs_path, REMOVED)) for stage in repo.index.stages for out in stage.outs)
    return {address: path for address, path in outs if path.is_file()}


def _sizes(repo: Repo, store: Remote | None, lost: Lost, files: Sequence[File]) -> dict[str, int]:
    """The bytes that go from each place."""
    here = [Path(repo.cache.local.oid_to_path(oid)) for oid in lost.objects]
    linked = {path.stat().st_ino for path in here if path.is_file()}
    own = (Path(repo.root_dir, file.folder, file.name) for file in files)
    copied = sum(path.stat().st_size for path in own if path.is_file() and path.stat().st_ino not in linked)
    cached = sum(map(_bytes, here))
    found = {"workspace and cache": cached + copied}
    return found if store is None else found | {f"remote {store.name}": store.size(lost.objects)}


def _remove(repo: Repo, files: Sequence[File], stale: Collection[str]) -> None:
    """Out of the workspace, each artifact's list first; DVC records artifacts, and the report's input, as they are."""
    outs = {out.def_path: out for stage in repo.index.stages for out in stage.outs}
    for folder in dict.fromkeys(file.folder for file in files):
        marker = Path(repo.root_dir, folder, REMOVED)
        said = _removed(marker) if marker.is_file() else {"files": {}, "trees": []}
        said["files"] |= {file.name: file.md5 for file in files if file.folder == folder}
        said["trees"] = list(dict.fromkeys([*said["trees"], outs[folder].hash_info.value]))
        marker.unlink(missing_ok=True)  # a link to DVC's object: its bytes stay
        with replacing(marker) as temporary:
            temporary.write_text(json.dumps(said, sort_keys=True, indent=2) + "\n", encoding="utf-8")
        for name in said["files"]:
            (marker.parent / name).unlink(missing_ok=True)
    changed = {file.node.address for file in files}
    readers = {s.addressing for s in repo.index.stages if any(dep.def_path == "artifacts" for dep in s.deps)} - {*stale}
    with lock_repo(repo):  # as `dvc commit --force` does, for all at once
        stages = [stage for stage in repo.index.stages if stage.addressing in changed | readers]
        for stage in stages:
            stage.save()
            stage.commit()
        if stages:
            with writing_whole():
                stages[0].dvcfile.dump_stages(stages, update_pipeline=False)


def _forget_here(repo: Repo, lost: Lost) -> None:
    """Out of the cache: objects, the trees that had them, and the run-cache's entries for those."""
    for entry in sorted(Path(repo.stage_cache.cache_dir).glob("??/*/*")):
        text = entry.read_text(encoding="utf-8", errors="replace")
        if any(tree in text for tree in lost.trees):
            entry.unlink()
    for oid in (*lost.trees, *lost.objects):
        Path(repo.cache.local.oid_to_path(oid)).unlink(missing_ok=True)
