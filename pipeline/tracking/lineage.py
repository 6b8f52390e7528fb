"""What lies in a project's artifacts of each arm and seed, as far as it belongs together.

A run that goes on after an edit of its params leaves artifacts of later rounds, which were made from others than those
that lie there now: they belong to an earlier run, and are left out until they are written anew.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rank_e.config import Params
from rank_e.io.files import sha256_of
from stages.report.sizes import Size, sizes
from stages.runtime.artifacts import MANIFEST, SchemaError, read_artifact, read_manifest
from stages.runtime.stage import artifact_path

STAGES = ("ranking", "policy", "decoder", "evaluation", "factorial")
CURVES = ("policy", "decoder")
"""The stages that train: they have a log, and an event log while they work."""


@dataclass(frozen=True)
class Made:
    """An artifact: its place in the project, its manifest and the sha256 of that, and when it was written (ms)."""

    path: Path
    manifest: dict[str, Any]
    sha256: str
    written: int


@dataclass
class Round:
    """A round: its artifacts by stage, the event logs of stages that are at work, and what is not to be shown."""

    made: dict[str, Made] = field(default_factory=dict)
    working: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class Lineage:
    """A project's artifacts; `begin` before each look at them."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self._read: dict[Path, tuple[tuple[int, ...], Made]] = {}
        self._counts: dict[str, dict[str, Size]] = {}
        self.begin()

    def begin(self) -> None:
        """What lies there may have changed: forget what was concluded from it."""
        self._whole: dict[Path, bool] = {}

    def at(self, path: Path) -> Made | None:
        """The artifact at a place in the project, None where none of this code is; ArtifactError for a damaged one."""
        file = self.project / path / MANIFEST
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        key = (status.st_mtime_ns, status.st_size, status.st_ino)
        if path not in self._read or self._read[path][0] != key:
            try:
                manifest = read_manifest(self.project / path)
            except SchemaError:  # of older code: to be made again
                return None
            made = Made(path, manifest, sha256_of(file), status.st_mtime_ns // 1_000_000)
            self._read[path] = (key, made)
        return self._read[path][1]

    def whole(self, made: Made, working: Collection[Path]) -> bool:
        """Whether its inputs, all the way up, are those that lie there now; working: places that are written anew."""
        if made.path not in self._whole:
            self._whole[made.path] = all(
                self._given(Path(entry["path"]), entry["sha256"], working) for entry in made.manifest["inputs"].values()
            )
        return self._whole[made.path]

    def _given(self, path: Path, sha256: str, working: Collection[Path]) -> bool:
        found = self.at(path)
        if found is None:  # removed since then, unless it is being made again
            return path not in working
        return found.sha256 == sha256 and self.whole(found, working)

    def rounds(self, params: Params, arm: str, seed: int) -> dict[int, Round]:
        """The rounds of an arm and seed of which anything belongs together, by their ids."""
        events = {item.id: self.events(arm, seed, item.id) for item in params.rounds}
        working = {
            artifact_path(stage, arm, seed, number)
            for number, logs in events.items()
            for stage in logs
            if self.at(artifact_path(stage, arm, seed, number)) is None
        }
        found: dict[int, Round] = {}
        for number, logs in events.items():
            entry = Round()
            for stage in STAGES:
                path = artifact_path(stage, arm, seed, number)
                made = self.at(path)
                # A decoder that is handed on names no inputs: it is of the round whose ranking belongs to the run.
                belongs = stage == "ranking" or ("evaluation" if stage == "factorial" else "ranking") in entry.made
                if made is not None and belongs and self.whole(made, working):
                    if stage == "evaluation" and not self.comparable(made):
                        entry.left_out[stage] = (
                            f"{stage} of round {number} is of other numbers of images than the base's"
                        )
                    else:
                        entry.made[stage] = made
                elif path in working and belongs:
                    entry.working[stage] = logs[stage]
            if entry.made or entry.working:
                found[number] = entry
        return found

    def events(self, arm: str, seed: int, number: int) -> dict[str, Path]:
        """The event logs of a round, by stage."""
        folder = self.project / ".rank-e" / "events"
        paths = {stage: folder / f"{arm}-s{seed}-r{number}-{stage}.jsonl" for stage in CURVES}
        return {stage: path for stage, path in paths.items() if path.is_file()}

    def start(self, params: Params, seed: int) -> Made | None:
        """The evaluation of what an arm starts from: a supervised start where one was trained, else the base."""
        found = self.at(artifact_path("sft_evaluation", seed=seed))
        if found is not None and found.manifest["params"].get("sft", {}).get("train"):
            return found
        return None if params.sft.train else self.at(artifact_path("baseline"))

    def comparable(self, made: Made) -> bool:
        """Whether an evaluation's distances are of as many images as the base's, where that is there."""
        base = self.at(artifact_path("baseline"))
        known = {} if base is None else self._sizes(base)
        return all(known.get(key, size) == size for key, size in self._sizes(made).items())

    def _sizes(self, made: Made) -> dict[str, Size]:
        """Of how many images each distance of an evaluation is."""
        if made.sha256 not in self._counts:
            found = sizes(read_artifact(self.project / made.path, "evaluation", lineage=False).json("metrics"))
            self._counts[made.sha256] = {key: size for key, size in found if size is not None}
        return self._counts[made.sha256]
