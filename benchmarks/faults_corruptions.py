"""Corruptions of a finished run: one thing is damaged, then read; what is read is what was written, or it is named.

Most are read in this process. One in ten goes through a command: a stage that reads what was damaged has to run again,
by `dvc repro` or `rank-e run`, and where that names the damage, the advice that it prints must bring the run back.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults_damage import Damage, damage
from benchmarks.faults_readers import (
    BASE,
    BELIEVED,
    NAMED,
    NO_LINE,
    NOT_HEALED,
    RECOMPUTED,
    UNCHANGED,
    WEIGHTS,
    Cell,
    Found,
    base,
    contents,
    fresh,
    interrupt,
    judge,
    kinds_of,
    named,
    results,
    run_stage,
    worst,
)
from benchmarks.faults_workspace import (
    COMMANDS,
    Done,
    Work,
    command,
    digests,
    files_of,
    forget,
    graph,
    names_of,
    objects,
    rot,
    touched,
    whole_cache,
    write,
)
from pipeline.repair import artifact_folders, repair
from rank_e.errors import RankEError
from stages.runtime.stage import artifact_path

SHARES = {"artifact": 45, "cache": 25, "state": 10, "weights": 20}
"""Of a hundred trials."""
EVERY = 10
"""One trial of so many goes through a command."""
STATE = Path(".rank-e") / "state"
CELLS: tuple[Cell, ...] = (
    ("policy", "coevolved", 0, 2),
    ("policy", "frozen", 0, 2),
    ("policy", "coevolved", 1, 2),
    ("decoder", "coevolved", 0, 1),
    ("decoder", "coevolved", 0, 2),
    ("evaluation", "coevolved", 0, 1),
    ("evaluation", "coevolved", 0, 2),
    ("evaluation", "frozen", 0, 2),
)
"""Whose states are damaged, and swapped for each other's."""
ADVICE = ["-m", "pipeline.cli", "repair"]


class Corruptions:
    """The campaign's trials, each decided by its number and the seed."""

    def __init__(self, work: Work, seed: int) -> None:
        self.work, self.seed = work, seed
        self.tree = work.links("tree")
        self.states = work.folder / "states"
        self.folders = [path.relative_to(self.tree) for path in artifact_folders(self.tree)]
        with fresh(self.tree):
            self.kinds = kinds_of(self.folders)
            self.whole = {folder: contents(folder, kind) for folder, kind in self.kinds.items()}
            self.results = {partial: results(partial) for partial in (False, True)}
            self.base = base()
            for cell in CELLS:
                if not (self.states / name_of(cell)).is_dir():
                    interrupt(cell, self.states / name_of(cell))
                    work.mend(self.tree)
        self.healthy = False

    def target(self, number: int) -> str:
        """What the trial damages."""
        return random.Random(f"{self.seed}/{number}/target").choices(list(SHARES), list(SHARES.values()))[0]

    def about(self, number: int) -> tuple[str, ...]:
        """What `--only` may name."""
        return (self.target(number),)

    def trial(self, number: int) -> dict[str, Any]:
        """Damage, read, judge; what was found."""
        draw, target = random.Random(f"{self.seed}/{number}"), self.target(number)
        through = list(COMMANDS)[number // EVERY % 2] if number % EVERY == 0 else None
        if through is None:
            done, found = getattr(self, f"read_{target}")(draw)
            self.work.mend(self.tree)
            root = self.tree
        else:
            root = self.work.trial
            done, found = self.go_through(draw, target, through)
        place = done.place.relative_to(root) if done.place.is_relative_to(root) else done.place
        row = {"target": target, "damage": done.kind, "by": through or "reader", "outcome": found.outcome}
        return {**row, "place": str(place), "line": found.line}

    def read_artifact(self, draw: random.Random) -> tuple[Damage, Found]:
        """By the artifact's readers, and by the tables."""
        done = self.draw_artifact(draw, self.tree)
        apply(done, write)
        place = done.place.relative_to(self.tree)
        folder = place if place in self.kinds else place.parent
        found = []
        with fresh(self.tree):
            found.append(judge(lambda: contents(folder, self.kinds[folder]), self.whole[folder], folder))
        for partial, whole in self.results.items():
            with fresh(self.tree):
                found.append(judge(lambda partial=partial: results(partial), whole, folder))  # type: ignore[misc]
        return done, worst(found)

    def read_cache(self, draw: random.Random) -> tuple[Damage, Found]:
        """By the repair that `rank-e run` begins with: artifacts are links to what is damaged."""
        done = damage(draw, objects(self.tree), lambda file: objects(self.tree))
        apply(done, write, names_of(self.tree, done.place))
        with fresh(self.tree):
            lines = repair(Path(), self.tree / ".dvc" / "cache")
        said = next((line for line in lines if done.place.name in line), "")
        return done, Found(NAMED if said else BELIEVED, said or lines[-1])

    def read_weights(self, draw: random.Random) -> tuple[Damage, Found]:
        """By a stage that has just begun."""
        done = damage(draw, list(files_of(self.tree / WEIGHTS)), lambda file: self.bases(self.tree))
        apply(done, write)
        with fresh(self.tree):
            return done, judge(base, self.base, WEIGHTS / done.place.name)

    def read_state(self, draw: random.Random) -> tuple[Damage, Found]:
        """By the stage that goes on from it."""
        cell, done = self.draw_state(draw, self.tree)
        shutil.rmtree(self.tree / artifact_path(*cell))
        with fresh(self.tree):
            try:
                said = run_stage(cell)
            except RankEError as error:
                return done, named(str(error), STATE)
            except Exception as error:  # any other is a traceback
                return done, Found(NO_LINE, f"{type(error).__name__}: {str(error)[:200]}")
        out = str(artifact_path(*cell))
        found = {path: sha256 for path, sha256 in digests(self.tree).items() if path.startswith(f"{out}/")}
        if any(self.work.golden[path] != sha256 for path, sha256 in found.items()) or not found:
            return done, Found(BELIEVED, said[-200:])
        told = [line for line in said.splitlines() if "begin from" in line or "evaluate from" in line]
        return done, Found(RECOMPUTED if told else UNCHANGED, *told[:1])

    def draw_artifact(self, draw: random.Random, root: Path) -> Damage:
        """A file of an artifact, or all of it replaced by one of another round, arm or seed."""
        if draw.random() < 0.2:
            pairs = [(a, b) for a in self.folders for b in self.folders if a != b and self.kinds[a] == self.kinds[b]]
            place, given = draw.choice(pairs)
            return Damage("whole", root / place, given=root / given)
        files = [file for folder in self.folders for file in files_of(root / folder)]
        return damage(draw, files, lambda file: [other for other in files if other.name == file.name])

    def draw_state(self, draw: random.Random, root: Path) -> tuple[Cell, Damage]:
        """Put a state into a workspace, and damage it."""
        cell = draw.choice(CELLS)
        shutil.rmtree(root / ".rank-e" / "state", ignore_errors=True)
        shutil.copytree(self.states / name_of(cell), root / STATE)
        others = [file for other in CELLS if other[0] == cell[0] for file in files_of(self.states / name_of(other))]
        parts = sorted((root / STATE).glob("*/*/part-*"))
        if parts and draw.random() < 0.3:
            place = draw.choice(parts)
            done = Damage("whole", place, given=draw.choice([o.parent for o in others if o.parent.name == place.name]))
        else:
            named_alike = lambda file: [other for other in others if other.name == file.name]  # noqa: E731
            done = damage(draw, list(files_of(root / STATE)), named_alike)
        apply(done, write)
        return cell, done

    def bases(self, root: Path) -> list[Path]:
        """The weight files that can be swapped."""
        return [root / WEIGHTS / f"{name}.safetensors" for name in BASE]

    def go_through(self, draw: random.Random, target: str, mode: str) -> tuple[Damage, Found]:
        """Damage a project, make a stage that reads it run again, heal what was named."""
        root = self.work.trial
        if not self.healthy:
            self.work.copy(root)
            command(root, ["-m", "dvc", "status", "dvc.yaml"])  # DVC has seen everything: no time tells it of rot
        self.healthy = False
        if target == "state":
            cell, done = self.draw_state(draw, root)
            places, outs = [done.place], [str(artifact_path(*cell))]
        else:
            done, places = self.draw_for(draw, target, root)
            outs = readers_of(root, places, draw)
        forget(root, outs)
        ways = COMMANDS[mode] + (["--no-track"] if mode == "rank-e run" else [])
        before = digests(root)
        ended = command(root, ways)
        found = self.judge_command(ended, before, places, root)
        if found.outcome == NAMED:
            found = self.heal(found, target, done, ways, root)
        self.healthy = found.outcome in (NAMED, RECOMPUTED) and digests(root) == self.work.golden and whole_cache(root)
        return done, found

    def draw_for(self, draw: random.Random, target: str, root: Path) -> tuple[Damage, list[Path]]:
        """Damage as a disk does it, or as somebody who writes a file, and all names of what it is done to.

        An artifact whose object in the cache is damaged is removed, so that DVC restores it.
        """
        how: Callable[[Path, bytes], None] = rot
        if target == "artifact":
            done = self.draw_artifact(draw, root)
            how = draw.choice((rot, touched))
        elif target == "cache":
            done = damage(draw, objects(root), lambda file: objects(root))
        else:
            done = damage(draw, list(files_of(root / WEIGHTS)), lambda file: self.bases(root))
            how = touched  # what was verified on this machine is known by its time
        names = names_of(root, done.place)
        if target == "cache":
            named_so = done.place.parent.name + done.place.name  # of a folder's listing, which no file is a link to
            outs = (entry["outs"].items() for entry in graph(root).values())
            names += [root / path for row in outs for path, md5 in row if md5 == named_so]
        apply(done, how)
        for folder in {path if path.is_dir() else path.parent for path in names} if target == "cache" else ():
            if folder.relative_to(root) in self.kinds:
                shutil.rmtree(folder)
        return done, names

    def judge_command(self, ended: Done, before: dict[str, str], places: list[Path], root: Path) -> Found:
        """By its status, what it said, and what lies there now."""
        now, golden = digests(root), self.work.golden
        other = sorted(path for path in {**golden, **now} if now.get(path) != golden.get(path))
        if ended.status == 0:
            made = [path for path in other if path not in now or before.get(path) != now[path]]
            if made:
                return Found(BELIEVED, f"{len(made)} files differ, first {made[0]}")
            return Found(UNCHANGED if other else RECOMPUTED)
        telling = {str(item.relative_to(root)) for place in places for item in (place, place.parent)}
        lines = [line for line in ended.output.splitlines() if any(place in line for place in telling)]
        if ended.status is None or "Traceback" in ended.output or not lines:
            traceback = ended.output.find("Traceback")
            shown = ended.output[-300:] if traceback < 0 else ended.output[traceback:][:3000]
            return Found(NO_LINE, f"status {ended.status}: {shown}")
        return Found(NAMED, lines[0][:300])

    def heal(self, found: Found, target: str, done: Damage, ways: list[str], root: Path) -> Found:
        """Follow the advice: repair and run again; weights are put back by who has them."""
        if target == "weights":
            shutil.copy2(self.work.finished / done.place.relative_to(root), done.place)
        command(root, ADVICE)
        again = command(root, ways)
        if again.status == 0 and digests(root) == self.work.golden:
            return found
        return Found(NOT_HEALED, f"{found.line} ... status {again.status}: {again.output[-300:]}")


def name_of(cell: Cell) -> str:
    """A cell in one word."""
    return "-".join(map(str, cell))


def apply(done: Damage, how: Callable[[Path, bytes], None], names: list[Path] | None = None) -> None:
    """Do the damage, to all hard links in `names` alike."""
    if done.given is not None:
        shutil.rmtree(done.place)
        shutil.copytree(done.given, done.place)
        return
    assert done.data is not None
    how(done.place, done.data)
    for name in names or ():
        if name != done.place:
            name.unlink()
            name.hardlink_to(done.place)


def readers_of(root: Path, places: list[Path], draw: random.Random) -> list[str]:
    """The outputs of one stage that reads any of these places, or of any stage where none does."""
    stages, paths = graph(root), [str(place.relative_to(root)) for place in places]
    readers = [
        name
        for name, entry in stages.items()
        if any(path == dep or path.startswith(f"{dep}/") for path in paths for dep in entry["deps"])
    ]
    return list(stages[draw.choice(sorted(readers) or sorted(stages))]["outs"])
