"""DVC as the project runs it: what it restores from its cache is what was put there, or is made anew.

DVC hashes an object when it enters the cache and trusts its name from then on, so bytes that rot later would come back
as an artifact. Here each object is hashed again when a stage is about to be restored from it. A damaged one is removed,
and since DVC then finds the stage's output no longer in its cache, it runs the stage. So it does where dvc.lock names
another cell's artifact, whole as it is.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dvc.cli import main as dvc
from dvc.output import Output
from dvc.stage import Stage
from dvc_data.hashfile.tree import Tree

from pipeline.cache_objects import holds
from pipeline.dvc_hashes import knowing_hashes
from pipeline.dvc_writing import writing_whole
from stages.runtime.manifests import ARTIFACTS, MANIFEST, cell_at, kind_at

LOGGER = logging.getLogger("dvc.stage.cache")


def rotten_objects(out: Output) -> list[Path]:
    """The objects of an output that are in the cache and are not what their names say."""
    if not out.use_cache or not out.hash_info:
        return []
    place = Path(out.cache.oid_to_path(out.hash_info.value))
    if not place.exists() or not holds(place):
        return [place] if place.exists() else []
    there = [path for path in sorted(set(objects_of(out).values())) if path.exists()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [path for path, whole in zip(there, pool.map(holds, there), strict=True) if not whole]


def objects_of(out: Output) -> dict[str, Path]:
    """The objects of a folder's files by their names, as its listing in the cache has them; nothing for a file."""
    listing = out.get_obj()
    entries = listing if isinstance(listing, Tree) else ()
    return {"/".join(key): Path(out.cache.oid_to_path(info.value)) for key, _, info in entries}


def is_anothers(out: Output) -> bool:
    """Whether an artifact, whole as it is, is one of another arm, seed, round or kind: dvc.lock was edited."""
    place = Path(out.def_path)
    if not out.use_cache or not out.hash_info or place.parts[:1] != ARTIFACTS.parts:
        return False
    manifest = objects_of(out).get(MANIFEST)
    if manifest is None or not manifest.exists():
        return False
    said = json.loads(manifest.read_text(encoding="utf-8"))
    return bool(said.get("cell") != cell_at(place) or said.get("kind") != kind_at(place))


@contextmanager
def restoring_whole() -> Iterator[None]:
    """While the block runs, DVC in this process restores nothing that rotted in its cache, or is another's."""
    cached = Stage.outs_cached  # what DVC asks before it restores a stage

    def outs_cached(stage: Stage) -> bool:
        for path in [path for out in stage.outs for path in rotten_objects(out)]:
            path.unlink(missing_ok=True)
            LOGGER.warning("removed %s: damaged in DVC's cache", path)
        if not cached(stage):
            return False
        others = [out.def_path for out in stage.outs if is_anothers(out)]
        for place in others:
            LOGGER.warning("dvc.lock has another artifact for %s: it is made anew", place)
        return not others

    Stage.outs_cached = outs_cached
    try:
        yield
    finally:
        Stage.outs_cached = cached


def main() -> None:
    """Entry point: DVC's command line."""
    with writing_whole(), restoring_whole(), knowing_hashes():
        sys.exit(dvc())


if __name__ == "__main__":
    main()
