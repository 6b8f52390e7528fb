"""MLflow: a parent run for each arm and seed, a nested run for each round, copied from the artifacts; the base and
each supervised start are runs of their own.

Training never talks to MLflow: a process of its own reads what the stages wrote, so a slow or dead server
costs nothing but curves. Every run is found by the tag `rank_e.round_key`; each stage that was copied is
tagged with the sha256 of its manifest. Equal: nothing is written. Different: the arm's runs are deleted and
written anew. An evaluation whose distances are of other numbers of images than the base's is left out until it is
written anew. While a stage works, its step metrics come from .rank-e/events; points carry a timestamp made
from the step, so the same point copied again from the finished log is the same row and not a second one.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Run

from pipeline.tracking.points import curve, flatten, live_points, points
from pipeline.tracking.store import LIVE, SHA, Store, default_uri, hashes, refusals
from rank_e.config import Params
from rank_e.errors import RankEError
from stages.report.images import sheet
from stages.report.sizes import Size, sizes
from stages.runtime.artifacts import MANIFEST, Artifact, manifest_sha256, read_artifact
from stages.runtime.stage import artifact_path

STAGES = ("ranking", "policy", "decoder", "evaluation")
CURVES = ("policy", "decoder")


@dataclass
class Tally:
    """What one pass did, by name of the run: created, replaced, extended by stages or live points, left alone."""

    created: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    extended: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ((name, len(getattr(self, name))) for name in ("created", "replaced", "extended", "skipped"))
        return ", ".join(f"{count} {name}" for name, count in counts)


class Tracker:
    """Copies one project's artifacts into one MLflow store; the only writer of its runs."""

    def __init__(self, project: Path, params: Params, uri: str | None = None) -> None:
        """TrackingError if the store at `uri` cannot be opened."""
        self.project, self.params = project, params
        self.uri = uri or default_uri(project)
        self._live: dict[str, int] = {}  # lines of each event log that are copied
        self._seen: dict[str, object] = {}  # what each arm's files were like when last copied
        with refusals(self.uri):
            self.store = Store(self.uri, project)

    def sync(self) -> Tally:
        """Copy what is new; artifacts that are not there yet are left for the next pass."""
        tally = Tally()
        with refusals(self.uri):
            self._sync_alone("base", "base", artifact_path("baseline"), {}, tally)
            for seed in self.params.seeds if self.params.sft.train else ():
                settings = self.params.sft.model_dump(mode="json") | {"seed": seed}
                self._sync_alone(
                    f"sft/s{seed}", f"sft s{seed}", artifact_path("sft_evaluation", seed=seed), settings, tally
                )
            for arm in self.params.arms:
                for seed in self.params.seeds:
                    self._sync_arm(arm, seed, tally)
        return tally

    def _sync_alone(self, key: str, name: str, folder: Path, settings: dict[str, Any], tally: Tally) -> None:
        """A run of its own for the evaluation of what comes before the rounds: the base, a supervised start."""
        path = self.project / folder
        if not (path / MANIFEST).is_file():
            return
        sha, settings = manifest_sha256(path), {"backbone": self.params.backbone.name, **settings}
        run = self.store.find(key)
        if not self._comparable(path):
            if run is not None:
                self.store.delete([run])
                tally.replaced.append(f"{key} (of other numbers of images than the base's)")
            return
        if run is None:
            tally.created.append(key)
        elif hashes(run) == {"evaluation": sha} and not _differs(run, settings):
            tally.skipped.append(key)
            return
        else:
            self.store.delete([run])
            tally.replaced.append(key)
        run = self.store.create(key, name, None, settings)
        self._copy(run, "evaluation", read_artifact(path, "evaluation", lineage=False), sha, 0)
        self.store.finish(run)

    def _sync_arm(self, arm: str, seed: int, tally: Tally) -> None:
        """The parent run and the rounds of one arm and seed."""
        key = f"{arm}/s{seed}"
        rounds = {item.id: found for item in self.params.rounds if (found := self._written(arm, seed, item.id))}
        events = {item.id: self._events(arm, seed, item.id) for item in self.params.rounds}
        seen = (rounds, [(path, path.stat().st_size) for item in events.values() for path in item.values()])
        if not rounds and not any(events.values()):
            return
        if self._seen.get(key) == seen:
            tally.skipped.append(key)
            return
        settings = self.params.arm(arm).model_dump(mode="json")
        parent = self.store.find(key)
        children = self.store.children(parent) if parent else {}
        if parent and (stale := self._stale(parent, children, rounds, settings, key)):
            self.store.delete([*children.values(), parent])
            tally.replaced.append(f"{key} ({stale})")
            parent, children, self._live = (
                None,
                {},
                {k: v for k, v in self._live.items() if not k.startswith(key)},
            )
        elif parent is None:
            tally.created.append(key)
        if parent is None:
            flat = dict(flatten(settings)) | {"seed": seed, "arm": arm}
            parent = self.store.create(key, f"{arm} s{seed}", None, flat)
        for item in self.params.rounds:
            written, live = rounds.get(item.id, {}), events[item.id]
            if written or live:
                self._sync_round(parent, children.get(f"{key}/r{item.id}"), (arm, seed, item.id), written, live, tally)
        if all("evaluation" in rounds.get(item, {}) for item in self.params.evaluated):
            self.store.finish(parent)
        self._seen[key] = seen

    def _sync_round(
        self, parent: Run, run: Run | None, cell: tuple[str, int, int],
        written: dict[str, str], live: dict[str, Path], tally: Tally,
    ) -> None:  # fmt: skip
        arm, seed, round_id = cell
        key = f"{arm}/s{seed}/r{round_id}"
        known = hashes(run) if run else {}
        missing = [stage for stage in STAGES if stage in written and stage not in known]
        unfinished = {stage: path for stage, path in live.items() if stage not in written}
        if run is None:
            run = self.store.create(
                key, f"r{round_id}", parent.info.run_id, {"arm": arm, "seed": seed, "round": round_id}
            )
            tally.created.append(key)
        elif not missing and not unfinished:
            tally.skipped.append(key)
        else:
            tally.extended.append(key)
        for stage in missing:
            artifact = read_artifact(self.project / artifact_path(stage, *cell), stage, lineage=False)
            self._copy(run, stage, artifact, written[stage], round_id)
            if stage == "evaluation":  # the parent shows the arm's way through the rounds
                self.store.log(parent.info.run_id, points("", artifact.json("metrics"), round_id))
        for stage, path in unfinished.items():
            self._copy_live(run, key, stage, path)
        if "evaluation" in written:
            self.store.finish(run)

    def _written(self, arm: str, seed: int, round_id: int) -> dict[str, str]:
        """The manifest's sha256 of each stage of a round that is there."""
        paths = {stage: self.project / artifact_path(stage, arm, seed, round_id) for stage in STAGES}
        found = {stage: manifest_sha256(path) for stage, path in paths.items() if (path / MANIFEST).is_file()}
        if "evaluation" in found and not self._comparable(paths["evaluation"]):
            del found["evaluation"]
        return found

    def _comparable(self, path: Path) -> bool:
        """Whether an evaluation's distances are of as many images as the base's, where that is there."""
        base = self.project / artifact_path("baseline")
        known = _sizes(base) if (base / MANIFEST).is_file() else {}
        return all(known.get(key, size) == size for key, size in _sizes(path).items())

    def _events(self, arm: str, seed: int, round_id: int) -> dict[str, Path]:
        """The event logs of a round, by stage."""
        folder = self.project / ".rank-e" / "events"
        paths = {stage: folder / f"{arm}-s{seed}-r{round_id}-{stage}.jsonl" for stage in CURVES}
        return {stage: path for stage, path in paths.items() if path.is_file()}

    def _stale(
        self,
        parent: Run,
        children: dict[str, Run],
        rounds: dict[int, dict[str, str]],
        settings: dict,
        key: str,
    ) -> str:
        """Why the runs of an arm do not show what lies in its artifacts, or "" if they do."""
        if _differs(parent, dict(flatten(settings))):
            return "other parameters"
        for name, run in children.items():
            round_id = int(name.rpartition("/r")[2])
            for stage, sha in hashes(run).items():
                now = rounds.get(round_id, {}).get(stage)
                path = self.project / artifact_path(stage, *_cell(name))
                if now is None and stage == "evaluation" and (path / MANIFEST).is_file():
                    return f"evaluation of round {round_id} is of other numbers of images than the base's"
                if now is not None and now != sha:
                    return f"another {stage} in round {round_id}"
                if now is None and self._events(*_cell(name)).get(stage):
                    return f"{stage} of round {round_id} runs again"
            for stage in CURVES:
                if self._live_differs(run, stage, _cell(name), rounds.get(round_id, {})):
                    return f"live curve of {stage} in round {round_id} began anew"
        return ""

    def _live_differs(self, run: Run, stage: str, cell: tuple[str, int, int], written: dict[str, str]) -> bool:
        """Whether points were copied live that the stage's events (or, once written, its log) lack."""
        if f"{LIVE}{stage}" not in run.data.tags or stage in hashes(run):
            return False
        if stage in written:
            artifact = read_artifact(self.project / artifact_path(stage, *cell), stage, lineage=False)
            now = {_row(point) for point in curve(stage, artifact.table("log"))}
        else:
            path = self._events(*cell).get(stage)
            now = {_row(point) for point in (live_points(stage, path, 0)[0] if path else [])}
        return any(_row(point) not in now for point in self.store.history(run, f"{stage}/"))

    def _copy(self, run: Run, stage: str, artifact: Artifact, sha: str, round_id: int) -> None:
        """One stage's metrics, curve and images; its tag comes last, so a broken copy is done again."""
        run_id = run.info.run_id
        prefix = "" if stage == "evaluation" else f"{stage}/round/"
        self.store.log(run_id, points(prefix, artifact.json("metrics"), round_id))
        if stage in CURVES:
            self.store.log(run_id, curve(stage, artifact.table("log")))
        if stage == "evaluation":
            images = artifact.arrays("images")
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "images.png"
                sheet([images["images"], images["original"]], 16).save(file)
                self.store.client.log_artifact(run_id, str(file))
        self.store.tag(run, f"{SHA}{stage}", sha)

    def _copy_live(self, run: Run, key: str, stage: str, path: Path) -> None:
        """The points that a working stage has added since the last pass."""
        tag, name = f"{LIVE}{stage}", f"{key}/{stage}"
        found, lines = live_points(stage, path, self._live.get(name, 0))
        if not found:
            return
        if tag not in run.data.tags:
            self.store.tag(run, tag, "true")
        self.store.log(run.info.run_id, found)
        self._live[name] = lines


def _cell(key: str) -> tuple[str, int, int]:
    """(arm, seed, round) of a round's key."""
    arm, seed, round_id = key.rsplit("/", 2)
    return arm, int(seed[1:]), int(round_id[1:])


def _sizes(path: Path) -> dict[str, Size]:
    """Of how many images each distance of an evaluation is."""
    found = sizes(read_artifact(path, "evaluation", lineage=False).json("metrics"))
    return {key: size for key, size in found if size is not None}


def _differs(run: Run, settings: dict[str, Any]) -> bool:
    """Whether a run was made with other parameters than these."""
    return any(run.data.params.get(name) != str(value) for name, value in settings.items())


def _row(point: Metric) -> tuple[str, int, float]:
    return point.key, point.step, point.value


def follow(
    tracker_for: Callable[[], Tracker],
    stop: Callable[[float], bool],
    say: Callable[[str], None],
    every: float,
) -> None:
    """Copy until `stop(seconds to wait)` says so, then once more; what fails is said and tried again."""
    tracker: Tracker | None = None
    last = False
    while True:
        try:
            tracker = tracker or tracker_for()
            tally = tracker.sync()
            if tally.created or tally.replaced:
                say(str(tally))
        except (RankEError, OSError) as error:  # an artifact that is being replaced, or a server that is away
            say(f"{str(error).splitlines()[0]} (trying again)")
        if last:
            return
        last = stop(every)
