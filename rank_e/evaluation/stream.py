"""Evaluating a stream of images: memory stays the same however many there are, and a killed run goes on.

Images are evaluated batch by batch and forgotten. What remains is written every `every` images as one folder
(`part-<first image>`), whole or not at all: scores in parquet, feature rows and totals in safetensors, the sha256 of
both, and the stream's key: a part that is damaged, or another stream's, is evaluated again. Rows are
kept on disk rather than moments because they are smaller (8 KB an image for D = 2048, where one covariance is
34 MB) and because a run that was killed then ends with the very rows of one that was not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rank_e.evaluation.base import EvaluationError, FeatureNetwork, Images, Scorer, check_values
from rank_e.io.checkpoints import save_tensors, write_folder
from rank_e.io.manifest import files_of
from rank_e.io.plugins import calling
from rank_e.io.sealed import SealError, read_json, write_json

ROWS, TENSORS, FILES, HEADER = "rows.parquet", "tensors.safetensors", "files.json", "stream.json"
FIXED = ("index", "category", "prompt")
Values = Mapping[str, Sequence[float] | Sequence[str]]


class ImageBatch(NamedTuple):
    """Images and their prompts, and what else `ImageStream.add` takes."""

    images: Images
    prompts: Sequence[str]
    categories: Sequence[str] | None = None
    values: Values | None = None
    totals: Mapping[str, Tensor] | None = None


class ImageStream:
    """Scores and features of images in `folder`, which it creates or takes up where it was left.

    `key` stands for everything else that decides the values (weights, prompts, seed): a folder of another key, other
    networks or other protocols is refused. `features` and `scores` map a metric's name to what computes it.
    """

    def __init__(
        self,
        folder: str | Path,
        key: str,
        *,
        features: Mapping[str, FeatureNetwork] | None = None,
        scores: Mapping[str, Scorer] | None = None,
        every: int = 512,
    ) -> None:
        if every < 1:
            raise EvaluationError(f"stream: every = {every}; write a part every 1 image or more")
        self.folder, self.key, self.every = Path(folder), key, every
        self.features, self.scores = dict(features or {}), dict(scores or {})
        if wrong := [name for name in (*self.features, *self.scores) if name in FIXED or "/" in name]:
            raise EvaluationError(f"stream: {wrong[0]!r} is not a name for a metric; choose another")
        self._open(key)
        self.parts, self.done = self._whole_parts()
        self._clear()

    def _clear(self) -> None:
        self._pending = 0
        self._columns: dict[str, list[Any]] = {}
        self._features: dict[str, list[Tensor]] = {name: [] for name in self.features}
        self._totals: dict[str, Tensor] = {}

    def _open(self, key: str) -> None:
        groups: dict[str, Mapping[str, FeatureNetwork | Scorer]] = {"features": self.features, "scores": self.scores}
        header: dict[str, Any] = {"key": key}
        for kind, group in groups.items():
            header[kind] = {name: {"protocol": item.protocol, "sha256": item.sha256} for name, item in group.items()}
        path = self.folder / HEADER
        if path.is_file() and (found := self._header(path)) is not None:
            if found != header:
                other = ", ".join(sorted(name for name in header if found.get(name) != header[name]))
                raise EvaluationError(f"{self.folder} was evaluated with another {other}; remove it to begin anew")
            return
        write_json(header, path)

    def _header(self, path: Path) -> Any:
        """What the header says; None, and no parts either, where it is damaged."""
        try:
            return read_json(path)
        except SealError as error:
            print(f"{error}: evaluate from image 0", flush=True)
            shutil.rmtree(self.folder)
            return None

    def _whole_parts(self) -> tuple[list[Path], int]:
        """Parts in order, and how many images they hold; those from the first damaged or missing one on are removed."""
        from pyarrow import parquet

        parts, done = sorted(self.folder.glob("part-*")), 0
        for place, part in enumerate(parts):
            if part.name != _name(done) or not _whole(part, self.key):
                print(f"{part} is damaged, another's or follows a gap: evaluate from image {done}", flush=True)
                for later in parts[place:]:
                    shutil.rmtree(later)
                return parts[:place], done
            done += parquet.read_metadata(part / ROWS).num_rows
        return parts, done

    def add(
        self,
        images: Images,
        prompts: Sequence[str],
        categories: Sequence[str] | None = None,
        *,
        values: Values | None = None,
        totals: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Evaluate the next images (N of uint8 [3, H, W]) of N prompts, whose first is image `done`.

        `values` are further columns of N entries that the caller has computed, `totals` tensors that are summed over
        all batches (such as token histograms). Nothing is kept when a network refuses.
        """
        count = len(images)
        categories = [""] * count if categories is None else list(categories)
        columns: dict[str, list[Any]] = {"category": categories, "prompt": list(prompts)}
        columns |= {name: list(column) for name, column in (values or {}).items()}
        for name, score in self.scores.items():
            with calling(f"evaluation.scores.{name}", EvaluationError):
                columns[name] = check_values(name, score(images, prompts)).tolist()
        rows = {}
        for name, network in self.features.items():
            with calling(f"evaluation.distances.{name}", EvaluationError):
                rows[name] = check_values(name, network(images))
        lengths = {name: len(column) for name, column in columns.items()}
        lengths |= {name: len(row) for name, row in rows.items()}
        if wrong := [f"{name} {length}" for name, length in lengths.items() if length != count]:
            raise EvaluationError(f"stream: {count} images but {', '.join(wrong)}; give one entry an image")
        if self._pending and columns.keys() != self._columns.keys():
            raise EvaluationError(
                f"stream: columns {sorted(columns)} after {sorted(self._columns)}; give the same each time"
            )
        for name, column in columns.items():
            self._columns.setdefault(name, []).extend(column)
        for name, row in rows.items():
            self._features[name].append(row)
        for name, total in (totals or {}).items():
            self._totals[name] = self._totals[name] + total if name in self._totals else total.clone()
        self._pending += count
        self.done += count
        if self._pending >= self.every:
            self._write()

    def finish(self) -> None:
        """Write what has been evaluated since the last part; call it after the last image."""
        if self._pending:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        start = self.done - self._pending
        table = pa.table({"index": np.arange(start, self.done), **self._columns})
        tensors = {f"features/{name}": torch.cat(rows) for name, rows in self._features.items()}
        tensors |= {f"totals/{name}": total for name, total in self._totals.items()}
        part = self.folder / _name(start)
        with write_folder(part) as folder:
            parquet.write_table(table, folder / ROWS, compression="zstd")
            save_tensors(tensors, folder / TENSORS)
            write_json({"key": self.key, "files": files_of(folder)}, folder / FILES)
        self.parts.append(part)
        self._clear()

    def columns(self) -> list[str]:
        """Names of the per-image columns that have been written; empty before the first part."""
        from pyarrow import parquet

        return list(parquet.read_schema(self.parts[0] / ROWS).names) if self.parts else []

    def rows(self, *names: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Part by part (index of the first image, columns by name).

        EvaluationError for an unknown column or an empty stream.
        """
        from pyarrow import parquet

        if not self.parts:
            raise EvaluationError(f"{self.folder} holds no images; evaluate some first")
        if missing := [name for name in names if name not in self.columns()]:
            raise EvaluationError(
                f"{self.folder} has no column {', '.join(missing)}; it has {', '.join(self.columns())}"
            )
        start = 0
        for part in self.parts:
            table = parquet.read_table(part / ROWS, columns=list(names))
            yield start, {name: table[name].to_numpy() for name in names}
            start += table.num_rows

    def feature_rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Part by part (index of the first image, features float32 [n, D])."""
        if not self.parts:
            raise EvaluationError(f"{self.folder} holds no images; evaluate some first")
        start = 0
        for part in self.parts:
            rows = _tensor(part, f"features/{name}")
            yield start, rows
            start += len(rows)

    def total(self, name: str) -> Tensor:
        """The sum over all batches of what `add` got as `totals[name]`."""
        if not self.parts:
            raise EvaluationError(f"{self.folder} holds no images; evaluate some first")
        total = _tensor(self.parts[0], f"totals/{name}")
        for part in self.parts[1:]:
            total = total + _tensor(part, f"totals/{name}")
        return total


def _name(start: int) -> str:
    return f"part-{start:09d}"


def _whole(part: Path, key: str) -> bool:
    """Whether a part's files are those that were written, in a stream of this key."""
    try:
        found = files_of(part)
        found.pop(FILES, None)
        return bool(read_json(part / FILES) == {"key": key, "files": found})
    except (SealError, FileNotFoundError):
        return False


def _tensor(part: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(part / TENSORS, framework="pt") as file:
        if name not in file.keys():  # noqa: SIM118 - not a mapping
            raise EvaluationError(f"{part} holds no {name}; every batch must give it")
        return file.get_tensor(name)


def evaluate_stream(
    stream: ImageStream,
    batch_of: Callable[[int, int], ImageBatch],
    total: int,
    batch_size: int,
    progress: Callable[[range], Iterable[int]] = iter,
) -> None:
    """Evaluate images 0 to `total`, from wherever the stream stands.

    `batch_of(start, stop)` gives the batch of that range; it must depend on the range alone. Parts end with a batch, so
    that a run that was killed goes on with the same batches.
    """
    if stream.done > total:
        raise EvaluationError(f"{stream.folder} holds {stream.done} images of {total}; remove it to begin anew")
    if stream.done % batch_size and stream.done != total:
        raise EvaluationError(
            f"{stream.folder} was evaluated in other batches than {batch_size}; remove it to begin anew"
        )
    for start in progress(range(stream.done, total, batch_size)):
        batch = batch_of(start, min(start + batch_size, total))
        stream.add(batch.images, batch.prompts, batch.categories, values=batch.values, totals=batch.totals)
    stream.finish()
