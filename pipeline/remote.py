"""A DVC remote as the place where machines hand artifacts over: its objects, and its run-cache beside them.

The run-cache says what a stage makes of its inputs: a machine that has it, and the objects that it names, restores what
another one has made, without a commit of dvc.lock. Any remote that DVC knows will do but one over HTTP.
"""

import contextlib
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.db import get_index

from rank_e.errors import RankEError
from stages.runtime.failures import one_line


class RemoteError(RankEError):
    """A remote cannot be reached, read or written."""


class Remote:
    """A remote of a project's DVC by its name."""

    def __init__(self, repo: Repo, name: str) -> None:
        """RemoteError where DVC has none of this name or cannot use it so."""
        self.repo, self.name = repo, name
        with self.errors():
            self._odb = repo.cloud.get_remote_odb(name, "rank-e")
            self._fs = self._odb.fs
            legacy = repo.cloud.get_remote_odb(name, "rank-e", hash_name="md5-dos2unix")
            self._root, self._runs = legacy.path, self._fs.join(legacy.path, "runs")

    @property
    def place(self) -> str:
        """Its address: a folder, or a URL."""
        return str(self._fs.unstrip_protocol(self._root)).removeprefix("local://")

    @property
    def found(self) -> bool:
        """Whether anything is at its address: a folder that is not mounted is not."""
        with self.errors():
            return bool(self._fs.exists(self._root))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Whatever goes wrong with the remote in the block is a RemoteError in one line."""
        try:
            yield
        except RankEError:
            raise
        except Exception as error:  # of some dozen libraries
            cause = error.__cause__ or error
            words = " ".join(f"{error if isinstance(error, DvcException) else cause}".split())
            fix = "what is done is kept here; see `dvc remote list`, its rights and its room, and run again"
            raise RemoteError(f"remote {self.name}: {words or type(cause).__name__}; {fix}") from None

    def held(self, oids: Collection[str]) -> list[str]:
        """Those of the objects that are there."""
        with self.errors():
            return sorted(self._odb.oids_exist(sorted(oids))) if oids else []

    def size(self, oids: Collection[str]) -> int:
        """The bytes of those of the objects that are there."""
        held = self.held(oids)
        with self.errors():
            return sum(self._fs.size(self._odb.oid_to_path(oid)) for oid in held)

    def forget(self, addresses: Sequence[str], objects: Collection[str], trees: Collection[str]) -> None:
        """Remove objects, trees, and the run-cache's entries for those.

        What the stages have now takes their place first, so that others who restore them get that.
        """
        dead = self.held(trees)
        if dead:
            self.push(addresses)
        with self.errors():
            for entry in self._entries() if dead else ():
                if any(tree in self._fs.open(entry, "r").read() for tree in dead):
                    self._fs.remove(entry)
            for oid in (*dead, *self.held(objects)):
                self._odb.delete(oid)
            get_index(self._odb).clear()  # DVC's own note of what is there

    def push(self, addresses: Sequence[str]) -> None:
        """Outputs of these stages, and what of the run-cache is not there."""
        with self.errors():
            self.repo.push(targets=list(addresses), remote=self.name)
            here = {self._relative(path): path for path in Path(self.repo.stage_cache.cache_dir).glob("??/*/*")}
            there = {self._fs.relpath(entry, self._runs) for entry in self._entries()}
            for name in sorted(here.keys() - there):
                target = self._fs.join(self._runs, *name.split("/"))
                self._fs.makedirs(self._fs.parent(target), exist_ok=True)
                self._fs.put_file(str(here[name]), target)

    def fetch(self) -> int:
        """What of the remote's run-cache is not here; the number of entries that came."""
        with self.errors():
            here = {self._relative(path) for path in Path(self.repo.stage_cache.cache_dir).glob("??/*/*")}
            new = [entry for entry in self._entries() if self._fs.relpath(entry, self._runs) not in here]
            for entry in new:
                target = Path(self.repo.stage_cache.cache_dir, *self._fs.parts(self._fs.relpath(entry, self._runs)))
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f"{target.name}.tmp")
                self._fs.get_file(entry, str(part))
                part.replace(target)
            return len(new)

    def make_default(self) -> None:
        """DVC's own default in this clone, which `dvc repro --pull` takes; RemoteError where it cannot be read."""
        with self.errors():
            self._entries()
        if self.repo.config["core"].get("remote") != self.name:
            with self.repo.config.edit("local") as config:
                config["core"]["remote"] = self.name

    def _entries(self) -> list[str]:
        return sorted(self._fs.find(self._runs)) if self._fs.exists(self._runs) else []

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.repo.stage_cache.cache_dir).as_posix()


def remote_of(repo: Repo, name: str | None) -> Remote | None:
    """The remote of this name, or DVC's default one; None where there is neither."""
    name = name or repo.config["core"].get("remote")
    return None if name is None else Remote(repo, name)


def main(words: Sequence[str]) -> None:
    """`python -m pipeline.remote fetch NAME`, or `push NAME STAGE...`, in a project's folder."""
    with one_line("rank-e"):
        what, name, *addresses = words
        with Repo(_wait_for_lock=True) as repo:
            remote = Remote(repo, name)
            remote.push(addresses) if what == "push" else remote.fetch()


if __name__ == "__main__":
    main(sys.argv[1:])
