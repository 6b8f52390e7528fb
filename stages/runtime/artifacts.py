"""Artifacts: folders that one stage writes whole and others only read.

Tensors lie in safetensors, tables in parquet, scalars in JSON; `manifest.json` names schema, kind, cell (the arm,
seed and round that the artifact's place names), the seed of its random numbers, whether deterministic algorithms were
asked for, params (the sections that it was made with, as its arm has them), inputs (their places and the sha256 of
their manifests), every file (sha256, bytes, shapes), and the sha256 of all this. Neither clock nor machine enters an
artifact: with such algorithms the same params give the same bytes. A writer fills a temporary folder, syncs it and
renames it, so a reader sees a whole artifact or none.

What is read is what was written: a reader hashes each file that it opens, once in a process (not what the process has
hashed as it wrote it), and refuses an artifact of another cell, or one that was made from other inputs than those that
lie there now. Files that `rank-e gc` has removed are named in `removed.json`: the artifact is whole without them, but
they cannot be opened.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_e.errors import RankEError
from rank_e.io.files import sha256_of
from rank_e.io.verified import Verified
from stages.runtime.manifests import MANIFEST, REMOVED, cell_at, project_of, removed_from, sealed, text_of

if TYPE_CHECKING:  # readers of tables and scalars start without torch and pandas
    import numpy as np
    import pandas as pd
    import torch

SCHEMA_VERSION = 3
KEYS = {"kind", "cell", "seed", "deterministic", "params", "inputs", "files", "sha256"}  # beside the schema's version
REPAIR = "run `rank-e repair`, then `dvc repro`"
"""DVC trusts what its cache holds: what is damaged there must be dropped before it makes the artifact again."""
READ = Verified()


class ArtifactError(RankEError):
    """An artifact is missing, damaged, of another kind, or was given something that it cannot hold."""


class SchemaError(ArtifactError):
    """An artifact is of older code."""


class RemovedError(ArtifactError):
    """A file of an artifact was removed by `rank-e gc`."""


class Artifact:
    """A whole artifact on disk, opened by `read_artifact`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.removed = removed_from(path)

    def tensors(self, name: str) -> "dict[str, torch.Tensor]":
        """The tensors of NAME.safetensors, on the CPU."""
        from safetensors.torch import load_file

        return load_file(self._file(f"{name}.safetensors"))

    def ahead(self, *names: str) -> None:
        """Begin to hash each NAME.safetensors that is there beside other work: opening it waits for that alone."""
        for name in names:
            file = self.path / f"{name}.safetensors"
            if file.is_file():
                READ.ahead(file)

    def arrays(self, name: str) -> "dict[str, np.ndarray]":
        """The tensors of NAME.safetensors as numpy arrays, without importing torch."""
        from safetensors.numpy import load_file

        return load_file(self._file(f"{name}.safetensors"))

    def table(self, name: str) -> "pd.DataFrame":
        """The table of NAME.parquet."""
        import pandas as pd

        return pd.read_parquet(self._file(f"{name}.parquet"))

    def json(self, name: str) -> Any:
        """What NAME.json holds."""
        return json.loads(self._file(f"{name}.json").read_text(encoding="utf-8"))

    def verify(self) -> None:
        """Hash every file, whether it was opened or not; ArtifactError names the first that is not what was written."""
        for name, entry in self.manifest["files"].items():
            if name not in self.removed and sha256_of(self.path / name) != entry["sha256"]:
                raise ArtifactError(f"{self.path / name} is not what was written: {REPAIR}")

    def _file(self, name: str) -> Path:
        """The path of a file that holds what was written; ArtifactError where it does not."""
        if name not in self.manifest["files"]:
            held = ", ".join(self.manifest["files"])
            raise ArtifactError(f"{self.path} holds no {name}, only {held}: {_fix(self.path)}")
        if name in self.removed:
            fix = "docs/dvc.md says how to have it made again"
            raise RemovedError(f"{self.path / name} was removed by `rank-e gc`: {fix}")
        if not READ.holds(self.path / name, self.manifest["files"][name]["sha256"]):
            raise ArtifactError(f"{self.path / name} is not what was written: {REPAIR}")
        return self.path / name


def read_artifact(path: str | Path, kind: str, *, lineage: bool = True) -> Artifact:
    """Open the artifact at `path`: of `kind`, of the arm, seed and round that the path names, and whole.

    Files are hashed when they are opened (`Artifact.verify` opens all). lineage: also compare the manifests of its
    inputs, where they lie beside it; a run in progress has artifacts whose inputs were made anew. ArtifactError names
    the path and the fix.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest["kind"] != kind:
        raise ArtifactError(f"{path} is of kind {manifest['kind']!r}, wanted {kind!r}: {REPAIR}")
    if manifest["cell"] != cell_at(path):
        found = ", ".join(f"{name} {value}" for name, value in manifest["cell"].items()) or "the whole run"
        raise ArtifactError(f"{path} is of {found}: {REPAIR}")
    try:
        artifact = Artifact(path, manifest)
    except ValueError:
        raise ArtifactError(f"{path / REMOVED} is damaged: {REPAIR}") from None
    for name, entry in manifest["files"].items():
        if name in artifact.removed:
            continue
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, not {entry['bytes']}"
            raise ArtifactError(f"{file} {found}: {REPAIR}")
    for name, entry in manifest["inputs"].items() if lineage else ():
        given = project_of(path) / entry["path"] / MANIFEST
        if given.is_file() and sha256_of(given) != entry["sha256"]:
            raise ArtifactError(f"{path} was made from another {name} than {entry['path']}: {_fix(path)}")
    return artifact


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact as it was written; ArtifactError where it is missing, damaged or of older code."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} does not exist: {_fix(path)}") from None
    except ValueError:
        raise ArtifactError(f"{path / MANIFEST} is not JSON: {REPAIR}") from None
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        raise ArtifactError(f"{path / MANIFEST} is no manifest of an artifact: {REPAIR}")
    found = manifest["schema_version"]
    if found in range(1, SCHEMA_VERSION):
        raise SchemaError(f"{path} has schema {found}, this code reads {SCHEMA_VERSION}: {_fix(path)}")
    if found != SCHEMA_VERSION or manifest.keys() != KEYS | {"schema_version"}:
        raise ArtifactError(f"{path / MANIFEST} is no manifest of an artifact: {REPAIR}")
    if text != text_of(sealed({key: value for key, value in manifest.items() if key != "sha256"})):
        raise ArtifactError(f"{path / MANIFEST} is not what was written: {REPAIR}")
    return manifest


def manifest_sha256(path: str | Path) -> str:
    """sha256 of an artifact's manifest, which stands for the artifact: it holds the sha256 of every file."""
    manifest = Path(path) / MANIFEST
    if not manifest.is_file():
        raise ArtifactError(f"{manifest} does not exist: {_fix(Path(path))}")
    return sha256_of(manifest)


def _fix(path: Path) -> str:
    return "run `dvc repro`" + (f", or remove {path} and run it again" if path.exists() else "")
