"""Projects to break: a small finished run, built once, and copies of it that cost little; what was done with them.

A copy for readers in this process is a tree of hard links: whatever is damaged there is another file under the same
name, and `mend` links the right one again. A copy for commands is a real one, in which artifacts and DVC's cache share
their bytes as they do in a project.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.demo import ROOT, copy_project
from pipeline.dvc import end_group
from rank_e.io.files import sha256_of

MARK = "RANK_E_FAULTS"
"""The environment variable that every process of a trial carries: what carries it later is an orphan."""
COMMANDS = {
    "dvc repro": ["-m", "pipeline.dvc_command", "repro"],
    "rank-e run": ["-m", "pipeline.cli", "run", "--jobs", "2"],
}
"""Both ways to run the pipeline."""
LINKED = ("artifacts", ".dvc", "assets")
"""What a tree of hard links shares with the finished run: files that are replaced and never written in place."""
CODE = ("rank_e", "stages", "pipeline")
PATIENCE = 900.0
"""Seconds after which a command counts as hanging."""
CACHE = Path(".dvc") / "cache" / "files" / "md5"


class Done(NamedTuple):
    """How a command ended: its status, None where it hung, and what it said."""

    status: int | None
    output: str


def environment(workspace: Path, mark: str) -> dict[str, str]:
    """A command's environment in a workspace: its own code, stores and DVC's notes; nothing of whoever runs this."""
    away = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RANK_E_OWNER", "RANK_E_WARM")
    kept = {name: value for name, value in os.environ.items() if name not in away}
    return kept | {
        "PYTHONPATH": str(workspace),
        "PREFECT_HOME": str(workspace / ".prefect"),
        "DVC_SITE_CACHE_DIR": str(workspace.parent / "site"),
        "DVC_NO_ANALYTICS": "1",
        "RANK_E_PYTHON": sys.executable,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        MARK: mark,
    }


def start(workspace: Path, words: Iterable[str], log: Path, mark: str = "") -> subprocess.Popen[bytes]:
    """A Python command in a workspace, in a session of its own, its output in `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=workspace,
            env=environment(workspace, mark),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def command(workspace: Path, words: Iterable[str], mark: str = "") -> Done:
    """Run a Python command in a workspace to its end."""
    log = workspace.parent / "output.log"
    process = start(workspace, words, log, mark)
    try:
        status: int | None = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        end_group(process)
        status = None
    except BaseException:  # this is being stopped: nothing goes on
        end_group(process)
        raise
    return Done(status, log.read_text(encoding="utf-8", errors="replace"))


def source_digest() -> str:
    """Of the code that a workspace has a copy of: trials of other code are no part of a campaign."""
    digest = hashlib.sha256()
    for path in sorted(path for name in CODE for path in (ROOT / name).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


class Work:
    """The folder of the campaigns: `finished`, an undisturbed run of the tiny profile with two seeds, and copies."""

    def __init__(self, folder: Path) -> None:
        """Built where it is not there yet; exits where it was built from other code."""
        self.folder = folder.resolve()
        self.finished = self.folder / "finished"
        self.trial = self.folder / "trial"
        about = self.folder / "about.json"
        source = source_digest()
        if not about.is_file():
            self._build()
            about.write_text(json.dumps({"source": source}), encoding="utf-8")
        if json.loads(about.read_text(encoding="utf-8"))["source"] != source:
            sys.exit(f"{self.folder} was built from other code: remove it, or give another --work")
        self.golden = digests(self.finished)

    def _build(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.finished.mkdir(parents=True)
        copy_project(self.finished)
        for words in (["-m", "pipeline.cli", "profile", "tiny"], COMMANDS["rank-e run"]):
            done = command(self.finished, words)
            if done.status != 0:
                sys.exit(f"{self.finished}: an undisturbed run ended with {done.status}:\n{done.output[-2000:]}")
            if "profile" in words:
                params = self.finished / "params.yaml"
                text = params.read_text(encoding="utf-8")
                params.write_text(text.replace("seeds:\n- 0\n", "seeds:\n- 0\n- 1\n"), encoding="utf-8")

    def copy(self, target: Path) -> Path:
        """The finished run anew at `target`, with its own links between artifacts and cache."""
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.finished), str(target)], check=True)
        return target

    def links(self, name: str) -> Path:
        """A tree of hard links to the finished run, for readers in this process."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for part in LINKED:
            shutil.copytree(self.finished / part, target / part, copy_function=os.link)
        for part in (*CODE, "dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore"):
            (target / part).symlink_to(self.finished / part)
        return target

    def mend(self, tree: Path) -> None:
        """Link again what is no longer the finished run's in a tree of links, and remove what is not in that."""
        for part in LINKED:
            for path in (tree / part).rglob("*"):
                if path.is_file() and not (self.finished / path.relative_to(tree)).is_file():
                    path.unlink()
            for path in self.finished.joinpath(part).rglob("*"):
                twin = tree / path.relative_to(self.finished)
                if path.is_dir():
                    twin.mkdir(exist_ok=True)
                elif not twin.is_file() or not twin.samefile(path):
                    twin.unlink(missing_ok=True)
                    os.link(path, twin)


def digests(workspace: Path) -> dict[str, str]:
    """sha256 of every file below artifacts; what is being written does not count."""
    files = sorted(path for path in (workspace / "artifacts").rglob("*") if path.is_file())
    return {str(path.relative_to(workspace)): sha256_of(path) for path in files if ".tmp-" not in str(path)}


def forget(workspace: Path, outs: Iterable[str]) -> None:
    """Remove outputs, and what DVC's cache holds of them alone, so that DVC has to make them again."""
    shutil.rmtree(workspace / ".dvc" / "cache" / "runs", ignore_errors=True)
    inodes = set()
    for out in outs:
        inodes |= {path.stat().st_ino for path in files_of(workspace / out)}
        shutil.rmtree(workspace / out, ignore_errors=True)
    for path in objects(workspace):
        status = path.stat()
        if status.st_ino in inodes and status.st_nlink == 1:
            path.unlink()


def files_of(path: Path) -> Iterator[Path]:
    """A file, or every file of a folder, in order; nothing where neither is."""
    yield from sorted(item for item in (path, *path.rglob("*")) if item.is_file())


def objects(workspace: Path) -> list[Path]:
    """Every object of a workspace's DVC cache."""
    return sorted(path for path in (workspace / CACHE).glob("??/*") if path.is_file())


def write(path: Path, data: bytes) -> None:
    """Another file under the name, with the times of the one that was there: hard links elsewhere keep theirs."""
    status = path.stat()
    new = path.with_name(f"{path.name}.damaged")
    new.write_bytes(data)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


def rot(path: Path, data: bytes) -> None:
    """The same file with other bytes, under all of its names, as a disk does it: no time tells."""
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.chmod(status.st_mode)


def touched(path: Path, data: bytes) -> None:
    """Another file under the name, written now."""
    write(path, data)
    os.utime(path)


def names_of(workspace: Path, place: Path) -> list[Path]:
    """All names of a file in artifacts and cache, or the folder itself."""
    if place.is_dir():
        return [place]
    inode = place.stat().st_ino
    files = [*files_of(workspace / "artifacts"), *objects(workspace)]
    return [path for path in files if path.stat().st_ino == inode] or [place]


def whole_cache(workspace: Path) -> bool:
    """Whether every object of DVC's cache has the contents that it is named by."""
    for path in objects(workspace):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != path.parent.name + path.name.removesuffix(".dir"):
            return False
    return True


def graph(workspace: Path) -> dict[str, dict[str, dict[str, str]]]:
    """For each stage that DVC has run its dependencies and outputs by path: {name: {deps: {path: md5}, outs: ...}}."""
    stages: Mapping[str, Any] = yaml.safe_load((workspace / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {
        name: {kind: {row["path"]: row["md5"] for row in entry.get(kind, ())} for kind in ("deps", "outs")}
        for name, entry in stages.items()
    }


class Journal:
    """Trials as they end, a line each: a campaign that is stopped goes on after the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        # A line that was being written when this was killed is not there.
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in text.split("\n")[:-1]]
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def go_through(self, numbers: Iterable[int], trial: Callable[[int], dict[str, Any]]) -> None:
        """Do the trials that are not there yet."""
        done = {row["trial"] for row in self.rows}
        for number in (number for number in numbers if number not in done):
            began = time.monotonic()
            row = {"trial": number, **trial(number), "seconds": round(time.monotonic() - began, 2)}
            self.rows.append(row)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(" ".join(f"{value}" for value in row.values())[:200], flush=True)
