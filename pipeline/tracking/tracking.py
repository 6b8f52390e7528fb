"""MLflow: a parent run for each arm and seed, a nested run for each round, copied from the artifacts; the base and
each supervised start are runs of their own, and the first point of every arm's curves.

Training never talks to MLflow: a process of its own reads what the stages wrote, so a slow or dead server
costs nothing but curves. Numbers and parameters come from the artifacts, never from the params.yaml of the moment.

A run is known by what made it. Each stage that was copied is tagged with the sha256 of its manifest, which holds its
params and the manifests of its inputs. The run of an arm goes on as long as nothing that lies there says otherwise;
else the one that the artifacts are of is looked for among the earlier ones, or begun, and the others are tagged as
superseded: nothing is deleted. While a stage works, its step metrics come from .rank-e/events.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mlflow.entities import Metric, Run

from pipeline.tracking.copying import copy_alone, copy_costs, copy_stage, points_of
from pipeline.tracking.families import Evidence, Families, Family, Points
from pipeline.tracking.lineage import Lineage, Made, Round
from pipeline.tracking.lock import one_tracker
from pipeline.tracking.origin import describe
from pipeline.tracking.points import curve, event_rows
from pipeline.tracking.registry import WEIGHTS, register
from pipeline.tracking.stamp import default_uri, stamp, write_links
from pipeline.tracking.store import KEY, PROJECT, SHA, Store, hashes, refusals
from rank_e.config import Params
from stages.runtime.stage import artifact_path


@dataclass
class Tally:
    """What one pass did, by name of the run: created, superseded, extended by stages or live points, left alone."""

    created: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    extended: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    arms: dict[str, bool] = field(default_factory=dict)  # by id of an arm's run that was looked into: not whole yet

    def __str__(self) -> str:
        names = ("created", "superseded", "extended", "skipped")
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in names)
        return "; ".join([*self.said, counts])


class Tracker:
    """Copies one project's artifacts into one MLflow store."""

    def __init__(self, project: Path, params: Params, uri: str | None = None) -> None:
        """Nothing is opened yet. params: which arms, seeds and rounds there are."""
        self.project, self.params = project, params
        self.uri = uri or default_uri(project)
        self.lineage = Lineage(project)
        self._store: Store | None = None
        self._links: dict[str, str] = {}  # of each round's run, where a server shows it
        self._seen: dict[str, object] = {}  # what each run's files were like when last copied

    def sync(self) -> Tally:
        """Copy what is new; artifacts that are not there yet are left for the next pass. TrackingError says why not."""
        with refusals(self.uri), one_tracker(self.project):
            tally = Tally()
            if self._store is None:
                self._store = Store(self.uri, self.project)
                tally.said += self._store.said
            self.lineage.begin()
            families = Families(self._store, self.project)
            for key in self._looked_at():
                seen = self._look(key)
                if seen is None:
                    continue
                if self._seen.get(key) == seen:
                    tally.skipped.append(key)
                elif "/" not in key or key.startswith("sft/"):
                    self._sync_alone(self._store, families, key, tally)
                else:
                    self._sync_arm(self._store, families, key, tally)
                self._seen[key] = seen
            if self._links:
                write_links(self.project, self._links)
        return tally

    def finished(self) -> None:
        """Note, for whoever asks without MLflow, that all that lies there is copied."""
        if not self.pending():
            stamp(self.project, self.uri)

    def pending(self) -> list[str]:
        """The runs of which something lies there that has not been copied."""
        self.lineage.begin()
        now = {key: self._look(key) for key in self._looked_at()}
        return [key for key, seen in now.items() if seen is not None and self._seen.get(key) != seen]

    def _looked_at(self) -> list[str]:
        """The keys of the runs that there may be: `base`, `sft/s0`, `frozen/s0`."""
        starts = [f"sft/s{seed}" for seed in self.params.seeds if self.params.sft.train]
        return ["base", *starts, *(f"{arm}/s{seed}" for arm in self.params.arms for seed in self.params.seeds)]

    def _look(self, key: str) -> object:
        """What lies there of a run, as far as it decides what is copied; None: nothing."""
        if key == "base" or key.startswith("sft/"):
            made = self._alone(key)
            return made and (made.sha256, self.lineage.comparable(made))
        arm, seed = _cell(key)
        rounds, start = self.lineage.rounds(self.params, arm, seed), self.lineage.start(self.params, seed)
        return (
            rounds
            and (
                {(number, stage): made.sha256 for number, item in rounds.items() for stage, made in item.made.items()},
                [item.left_out for item in rounds.values()],
                [(path, path.stat().st_size) for item in rounds.values() for path in item.working.values()],
                start and start.sha256,
            )
        ) or None

    def _alone(self, key: str) -> Made | None:
        """The evaluation of the base, or of a supervised start that was trained."""
        if key == "base":
            return self.lineage.at(artifact_path("baseline"))
        made = self.lineage.at(artifact_path("sft_evaluation", seed=_cell(key)[1]))
        return made if made is not None and made.manifest["params"].get("sft", {}).get("train") else None

    def _sync_alone(self, store: Store, families: Families, key: str, tally: Tally) -> None:
        """A run of its own for the evaluation of what comes before the rounds: the base, a supervised start."""
        made = self._alone(key)
        assert made is not None
        found = points_of(self.project, {}, "evaluation", made, 0)

        def is_of(run: Run) -> bool:
            copied = hashes(run).get("evaluation")
            return copied == made.sha256 or (not copied and families.mine(run) and not store.contradicts(run, found))

        shown = self.lineage.comparable(made)
        run = next((run for run in store.with_key(key) if is_of(run)), None) if shown else None
        if run is not None and hashes(run):
            tally.skipped.append(key)
        elif shown:
            if run is None:
                cell = {"arm": key.partition("/")[0], "round": "0"} | ({} if key == "base" else {"seed": key[5:]})
                tags = {KEY: key, PROJECT: families.me, **cell}
                run = store.create(key.replace("/", " "), tags, None, made.written)
                tally.created.append(key)
            copy_alone(store, self.lineage, run, made, found)
        if families.make_current(key, run):
            other = "another evaluation" if shown else "of other numbers of images than the base's"
            tally.superseded.append(f"{key} ({other})")
        if run is not None:
            store.revive(run)
            store.add(run, tags=describe(self.project, "", run.data.params))
            store.finish(run, made.written)

    def _sync_arm(self, store: Store, families: Families, key: str, tally: Tally) -> None:
        """The parent run and the rounds of one arm and seed."""
        arm, seed = _cell(key)
        rounds, start = self.lineage.rounds(self.params, arm, seed), self.lineage.start(self.params, seed)
        points = self._points(arm, seed, rounds)
        family, reason = families.find(key, Evidence(rounds, start, points))
        if family is None:
            first = min(made.written for item in rounds.values() for made in item.made.values())
            tags = {KEY: key, PROJECT: families.me, "arm": arm, "seed": str(seed)}
            family = Family(store.create(f"{arm} s{seed}", tags, None, first))
            store.add(family.parent, params={"arm": arm, "seed": str(seed)})
            tally.created.append(key)
        if families.make_current(key, family.parent):
            tally.superseded.append(f"{key} ({reason})")
        for run in (*family.rounds.values(), family.parent):
            store.revive(run)
        if start is not None and not hashes(family.parent):
            metrics = points_of(self.project, {}, "evaluation", start, 0)
            store.add(family.parent, metrics, tags={f"{SHA}start": start.sha256})
        for number, item in rounds.items():
            self._sync_round(store, families, family, (arm, seed, number), item, points, tally)
        described = describe(self.project, arm, family.parent.data.params)
        for run in (*family.rounds.values(), family.parent):
            store.add(run, tags=described)
        done = [rounds[n].made["evaluation"] for n in self.params.evaluated if n in rounds and _evaluated(rounds[n])]
        tally.arms[family.parent.info.run_id] = len(done) < len(self.params.evaluated)
        if len(done) == len(self.params.evaluated):
            store.finish(family.parent, max(made.written for made in done))
            last, first = rounds[self.params.last_round].made, seed == self.params.seeds[0]
            if last.keys() >= set(WEIGHTS):  # weights that were removed since then have no place
                register(store, family.parent, arm, seed, last, first)

    def _points(self, arm: str, seed: int, rounds: dict[int, Round]) -> Points:
        """The points of each round and stage, read when they are asked for."""

        @cache
        def points(number: int, stage: str) -> list[Metric]:
            item = rounds[number]
            if stage in item.made:
                return points_of(self.project, self.lineage.events(arm, seed, number), stage, item.made[stage], number)
            rows, times = event_rows(item.working[stage])
            return curve(stage, rows, times, 0)

        return points

    def _sync_round(
        self, store: Store, families: Families, family: Family, cell: tuple[str, int, int], item: Round,
        points: Points, tally: Tally,
    ) -> None:  # fmt: skip
        arm, seed, number = cell
        key, run = f"{arm}/s{seed}/r{number}", family.rounds.get(number)
        known: Sequence[str] = [] if run is None else list(hashes(run))
        missing = {stage: made for stage, made in item.made.items() if stage not in known}
        if run is None:
            began = min(made.written for made in item.made.values())
            cell_tags = {"arm": arm, "seed": str(seed), "round": str(number)}
            tags = {KEY: key, PROJECT: families.me, **cell_tags}
            run = family.rounds[number] = store.create(f"r{number}", tags, family.parent.info.run_id, began)
            store.add(run, params=cell_tags)
            tally.created.append(key)
        else:
            (tally.extended if missing or item.working else tally.skipped).append(key)
        if address := store.address(run):
            self._links[key] = address
        for stage, made in missing.items():
            copy_stage(store, self.lineage, (run, family.parent), stage, made, points(number, stage))
        for stage, made in item.made.items():
            copy_costs(store, self.lineage, run, stage, made)
        for stage in item.working:
            for shown in (run, family.parent):
                store.add(shown, points(number, stage))
        trained = number not in self.params.evaluated and {"policy", "decoder"} <= item.made.keys()
        if trained or _evaluated(item):
            store.finish(run, max(made.written for made in item.made.values()))


def _evaluated(item: Round) -> bool:
    return "evaluation" in item.made


def _cell(key: str) -> tuple[str, int]:
    """(arm, seed) of a key such as `frozen/s0`."""
    arm, _, seed = key.rpartition("/s")
    return arm, int(seed)
