"""Writing artifacts: a folder that appears whole, or not at all, under a manifest that says what is in it."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rank_e.io.files import State, md5_of, plain, replacing, settled_sha256, sha256_of, state_of
from stages.runtime.artifacts import READ, SCHEMA_VERSION, Artifact, ArtifactError, manifest_sha256
from stages.runtime.manifests import MANIFEST, cell_at, not_plain, sealed, text_of
from stages.runtime.phases import PHASES

if TYPE_CHECKING:
    import pandas as pd
    import torch

HASHING = 8
"""Files that are hashed or brought to the disk at once, beside the one that is being written."""


class ArtifactWriter:
    """Context manager that builds an artifact at `path`; an exception inside leaves nothing behind.

    `inputs` maps a name to the folder of an artifact that was read; it is kept, with its manifest's sha256. A tensor
    or a number that is not finite is refused by name.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        *,
        seed: int,
        deterministic: bool,
        inputs: Mapping[str, str | Path] | None = None,
        params: Mapping[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
        noted: Callable[[Path, Mapping[str, tuple[str, State]]], None] | None = None,
    ) -> None:
        """deterministic: whether the bytes are those of `runtime.deterministic: true`; params: those that the artifact
        was made with; check: raises, just before the artifact would appear, where it must not; noted: gets the path
        and, of every file of tensors, MD5 and state before that was taken, when the artifact is there.
        """
        self.path = Path(path)
        self.kind = kind
        self.seed = seed
        self.deterministic = deterministic
        self.inputs = dict(inputs or {})
        self.params = dict(params or {})
        self.check = check
        self.noted = noted
        self._shapes: dict[str, dict[str, Any]] = {}
        self._sha256: dict[str, Future[str]] = {}
        self._md5: dict[str, Future[str]] = {}
        self._states: dict[str, State] = {}

    def __enter__(self) -> Self:
        self._writing = self._write()
        return self._writing.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writing.__exit__(kind, error, trace)

    @contextmanager
    def _write(self) -> Iterator[Self]:
        """The block, then the manifest; two writers of one artifact are kept apart by the stage's lock."""
        with PHASES.phase("save"):
            with replacing(self.path) as self._folder, ThreadPoolExecutor(HASHING) as self._pool:
                self._folder.mkdir()
                yield self
                self._write_manifest()
                self.check()
            for name, state in self._states.items():  # a process that goes on to the next stage has read these
                if state_of(self.path / name) == state:
                    READ.found(self.path / name, self._sha256[name].result())
            if self.noted is not None:
                self.noted(self.path, {n: (md5.result(), self._states[n]) for n, md5 in self._md5.items()})

    def _settle(self, name: str) -> None:
        """Hash a file that is complete, and wait until it is on the disk, while others are written."""
        state = state_of(self._folder / name)
        assert state is not None  # it has just been written
        self._states[name] = state
        self._sha256[name] = self._pool.submit(settled_sha256, self._folder / name)
        if self.noted is not None:
            self._md5[name] = self._pool.submit(md5_of, self._folder / name)

    def tensors(self, name: str, tensors: "Mapping[str, torch.Tensor]") -> None:
        """Write NAME.safetensors (moved to the CPU); ArtifactError names tensors that are not finite."""
        from safetensors.torch import save_file

        owned = plain(tensors)
        self._refuse(f"{name}.safetensors", [key for key, value in owned.items() if not bool(value.isfinite().all())])
        save_file(owned, self.file(f"{name}.safetensors"))
        shapes = {key: list(owned[key].shape) for key in sorted(owned)}
        self._shapes[f"{name}.safetensors"] = {"shapes": shapes}
        self._settle(f"{name}.safetensors")

    def table(self, name: str, table: "pd.DataFrame") -> None:
        """Write NAME.parquet, without its index; NaN is an absent value, an infinite one an ArtifactError."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as parquet

        numbers = table.select_dtypes("floating")
        self._refuse(f"{name}.parquet", [str(c) for c in numbers if np.isinf(numbers[c].to_numpy()).any()])
        # The schema's metadata names library versions and would change the bytes.
        plain = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
        parquet.write_table(plain, self.file(f"{name}.parquet"), compression="zstd")
        self._shapes[f"{name}.parquet"] = {"rows": len(table), "columns": [str(c) for c in table.columns]}

    def _refuse(self, name: str, wrong: list[str]) -> None:
        if wrong:
            raise ArtifactError(f"{self.path / name} cannot hold {', '.join(wrong[:5])}: numbers must be finite")

    def json(self, name: str, value: Any) -> None:
        """Write NAME.json with sorted keys; ArtifactError names a number that is not finite."""
        try:
            text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False)
        except (ValueError, TypeError) as error:
            wrong = not_plain(value, name)
            raise ArtifactError(f"{self.path / name}.json cannot hold {wrong or error}") from None
        self.file(f"{name}.json").write_text(text + "\n", encoding="utf-8")

    def copy(self, artifact: Artifact) -> None:
        """Write every file of another artifact, byte for byte, with what its manifest says of shapes."""
        for name, entry in artifact.manifest["files"].items():
            shutil.copyfile(artifact.path / name, self.file(name))
            self._shapes[name] = {key: value for key, value in entry.items() if key not in ("sha256", "bytes")}
            self._settle(name)

    def file(self, name: str) -> Path:
        """The path at which the caller writes file NAME before the block ends."""
        if name == MANIFEST or Path(name).name != name:
            raise ArtifactError(f"{self.path}: {name!r} is not a name for a file of an artifact")
        return self._folder / name

    def _write_manifest(self) -> None:
        files = {}
        for file in sorted(self._folder.iterdir()):
            sha256 = self._sha256[file.name].result() if file.name in self._sha256 else sha256_of(file)
            entry = {"sha256": sha256, "bytes": file.stat().st_size}
            files[file.name] = entry | self._shapes.get(file.name, {})
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "cell": cell_at(self.path),
            "seed": self.seed,
            "deterministic": self.deterministic,
            "params": self.params,
            "inputs": {
                name: {"path": Path(path).as_posix(), "sha256": manifest_sha256(path)}
                for name, path in self.inputs.items()
            },
            "files": files,
        }
        (self._folder / MANIFEST).write_text(text_of(sealed(manifest)), encoding="utf-8")
