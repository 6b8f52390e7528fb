"""What every stage shares: arguments, params, errors, determinism, progress, events, mid-stage state.

A stage module is `def run(stage: Stage) -> None` and `main("name", run)`. Before `run`, the process ties
its life to its parent's, takes the stage's lock, and fixes torch's threads and algorithms.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_e.config import ArmParams, ConfigError, Params
from rank_e.config.loading import parse_text
from rank_e.config.reading import read_text
from rank_e.errors import RankEError
from rank_e.io.files import sha256_of
from rank_e.io.verified import WEIGHTS
from stages.runtime.algorithms import configure_torch
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import manifest_sha256
from stages.runtime.failures import one_line
from stages.runtime.locks import stage_locks
from stages.runtime.manifests import ARTIFACTS
from stages.runtime.memory import Memory
from stages.runtime.phases import PHASES
from stages.runtime.process import follow_parent
from stages.runtime.progress import EventLog, track
from stages.runtime.recorded import PARAMS, Recorded, dependencies, sections, values_of
from stages.runtime.state import StageState
from stages.runtime.termination import TERMINATION
from stages.runtime.usage import record_usage
from stages.runtime.written import note_md5

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

SOURCE = Path(__file__).parents[2]
"""The project's folder: this code and a user's own modules."""
WORK = Path(".rank-e")
"""Events, states and locks: of use while a run lasts, never an input or an output; the report shows what it took."""

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "code": (),
    "reference": (),
    "baseline": (),
    "sft": ("seed",),
    "sft_evaluation": ("seed",),
    "prompts": ("seed", "round"),
    "start": ("arm", "seed"),
    "rollouts": ("arm", "seed", "round"),
    "ranking": ("arm", "seed", "round"),
    "policy": ("arm", "seed", "round"),
    "decoder": ("arm", "seed", "round"),
    "evaluation": ("arm", "seed", "round"),
    "factorial": ("arm", "seed", "round"),
    "report": (),
}
"""What each stage is called with."""

LOCK_PATIENCE = 30.0
"""Seconds that a stage waits for another process that writes the same artifact."""


def artifact_path(kind: str, arm: str = "", seed: int = 0, round: int = 0) -> Path:
    """The folder of an artifact of `kind` (a stage's name), relative to the project's folder."""
    if kind in ("code", "reference"):
        return ARTIFACTS / kind
    if kind == "baseline":
        return ARTIFACTS / "base" / "evaluation"
    if kind == "sft":
        return ARTIFACTS / "sft" / f"s{seed}" / "policy"
    if kind == "sft_evaluation":
        return ARTIFACTS / "sft" / f"s{seed}" / "evaluation"
    if kind == "report":
        return Path("report")
    if kind == "prompts":
        return ARTIFACTS / "prompts" / f"s{seed}" / f"r{round}"
    if kind in ("rollouts", "ranking", "policy", "decoder", "evaluation", "factorial"):
        return ARTIFACTS / arm / f"s{seed}" / f"r{round}" / kind
    raise RankEError(f"there is no artifact of kind {kind!r}: the kinds are the stages' names but start")


@dataclass(frozen=True)
class Stage:
    """One cell of the grid: the stage's name, its params, and the arm, seed and round that it was called for.

    A stage without an argument has arm "", the evaluation's seed, or round 0. recorded: what DVC will record of it, as
    it was when the stage began; None where nobody records. shared: where another arm's artifact was copied,
    `with` that arm, which had taken `seconds`.
    """

    name: str
    params: Params
    arm: str = ""
    seed: int = 0
    round: int = 0
    memory: Memory = field(default_factory=Memory)
    recorded: Recorded | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def arm_params(self) -> ArmParams:
        """The arm's merged rollouts, ranking, policy and decoder; ConfigError for a stage without an arm."""
        return self.params.arm(self.arm)

    @property
    def key(self) -> str:
        """The cell in one word, such as policy-frozen-s0-r2: names its events, state and lock."""
        given = ARGUMENTS[self.name]
        parts = [self.name, self.arm if "arm" in given else "", f"s{self.seed}" if "seed" in given else ""]
        return "-".join(part for part in [*parts, f"r{self.round}" if "round" in given else ""] if part)

    @property
    def title(self) -> str:
        """The cell for people, such as `policy frozen s0 r2`."""
        return self.key.replace("-", " ")

    @property
    def device(self) -> "torch.device":
        """The device of `runtime.device`; ConfigError if this machine has none."""
        import torch

        device = torch.device(self.params.runtime.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"params.yaml: runtime.device = {device}: there is no CUDA device here, use cpu")
        return device

    @cached_property
    def used(self) -> dict[str, Any]:
        """The sections of params.yaml that the stage reads, as its arm has them: what its artifacts say of params."""
        values = self.params.model_dump(mode="json")
        keys = sections(self.name, values, self.arm)
        of_arm = {key.split(".")[2] for key in keys if key.startswith("arms.")}
        if of_arm:
            merged = self.arm_params.model_dump(mode="json")
            values |= {section: merged[section] for section in of_arm}
        return values_of([key for key in keys if not key.startswith("arms.")], values)

    def begun(self, text: str) -> "Stage":
        """This stage, having noted what DVC will record of it; ChangedError where its code is not what was listed.

        text: of the params.yaml that the params are from.
        """
        values = self.params.model_dump(mode="json")
        keys = sections(self.name, values, self.arm)
        paths = dependencies(self.name, values, self.arm, self.seed, self.round)
        code = self.path("code") / f"{self.name}.json"
        return replace(self, recorded=Recorded(self.title, text, keys, paths, code))

    def check(self) -> None:
        """ChangedError where a parameter or file is not what it was when the stage began."""
        if self.recorded is not None:
            self.recorded.check()

    @property
    def made(self) -> Path:
        """Its artifact, by which its record of usage is known; of `start`, which writes three, the policy."""
        return self.path("policy" if self.name == "start" else self.name)

    def path(self, kind: str, arm: str | None = None, seed: int | None = None, round: int | None = None) -> Path:
        """The folder of an artifact of this cell, or of another arm, seed or round."""
        return artifact_path(
            kind,
            self.arm if arm is None else arm,
            self.seed if seed is None else seed,
            self.round if round is None else round,
        )

    @property
    def deterministic(self) -> bool:
        """Whether the stage's bytes are those that its params always give on this device."""
        return self.params.runtime.deterministic and not self.memory.halvings

    def writer(
        self,
        kind: str,
        path: Path | None = None,
        *,
        inputs: Mapping[str, str | Path],
        seed: int | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> ArtifactWriter:
        """A writer of an artifact of `kind`: at its place, with the cell's seed and params where nothing else is said.

        Nothing appears where `check` fails.
        """
        return ArtifactWriter(
            self.path(kind) if path is None else path,
            kind,
            seed=self.seed if seed is None else seed,
            deterministic=self.deterministic,
            inputs=inputs,
            params=self.used if params is None else params,
            check=self.check,
            noted=note_md5,
        )

    @cached_property
    def events(self) -> EventLog:
        """The live log of step metrics: .rank-e/events/<arm>-s<seed>-r<round>-<stage>.jsonl, emptied here."""
        parts = self.key.split("-")
        return EventLog(WORK / "events" / f"{'-'.join([*parts[1:], parts[0]])}.jsonl")

    def progress(self, steps: Sequence[int], label: str) -> "Iterator[int]":
        """Iterate over `steps`, showing how far it is and when it will be done; a stage asked to end does after one."""
        name = self.title if label == self.name else f"{self.title} · {label}"
        with PHASES.phase("work"), TERMINATION.loop():
            for step in track(steps, name):
                yield step
                TERMINATION.check()

    @cached_property
    def code(self) -> dict[str, str]:
        """{path: sha256} of the source files that decide this stage's bytes.

        As the stage `code` wrote it down, if those are the files' hashes; otherwise listed anew.
        """
        written = self.path("code") / f"{self.name}.json"
        with suppress(FileNotFoundError, TypeError, ValueError):  # not there yet, or damaged
            listed: dict[str, str] = dict(json.loads(written.read_text(encoding="utf-8")))
            if all(Path(path).is_file() and sha256_of(path) == sha256 for path, sha256 in listed.items()):
                return listed
        from stages.runtime.code_list import code_list, sources_of

        return code_list(sources_of(SOURCE, self.params), self.name)

    def state(self, *inputs: str | Path) -> StageState:
        """The mid-stage state of this cell for these inputs, params, code and data: everything that moves the bytes."""
        digest = hashlib.sha256(self.key.encode())
        params = self.params.model_dump(mode="json", exclude={"rounds", "evaluated", "seeds", "factorial", "guards"})
        digest.update(json.dumps(params, sort_keys=True).encode())
        digest.update(json.dumps(self.code, sort_keys=True).encode())
        digest.update("".join(manifest_sha256(path) for path in inputs).encode())
        digest.update((self.recorded.data_digest() if self.recorded is not None else "").encode())
        return StageState(WORK / "state", self.key, digest.hexdigest()[:16])


def main(name: str, run: Callable[[Stage], None], arguments: list[str] | None = None, *, computes: bool = True) -> None:
    """Run a stage from the command line; exits with 1 and one line for an error that the user can fix.

    A stage that does not compute, `computes=False`, is over before torch would be imported.
    """
    began = time.monotonic()
    PHASES.begin()
    follow_parent()
    TERMINATION.listen(name)
    stage_arguments = parse_arguments(name, arguments)
    with one_line(name):
        text = read_text(PARAMS)
        stage = make_stage(name, parse_text(text), **stage_arguments)
        WEIGHTS.keep_in(WORK / "verified")
        with stage_locks(WORK / "locks", stage.key, LOCK_PATIENCE):
            stage = stage.begun(text)
            if computes:
                configure_torch(stage.params)
            stage.memory.run(stage.title, lambda: run(stage))
            record_usage(WORK / "usage" / f"{stage.key}.json", began, stage.made, stage.shared)


def parse_arguments(name: str, arguments: list[str] | None = None) -> dict[str, Any]:
    """--arm, --seed and --round as the stage needs them."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", allow_abbrev=False)
    for argument in ARGUMENTS[name]:
        parser.add_argument(f"--{argument}", required=True, type=str if argument == "arm" else int)
    return vars(parser.parse_args(arguments))


def make_stage(name: str, params: Params, arm: str = "", seed: int | None = None, round: int = 0) -> Stage:
    """The cell of the grid with these coordinates; ConfigError if params.yaml does not have them."""
    if arm:
        params.arm(arm)
    if seed is not None and seed not in params.seeds:
        raise ConfigError(f"seed {seed} is not in params.yaml: seeds = {params.seeds}")
    if "round" in ARGUMENTS[name] and round not in [item.id for item in params.rounds]:
        raise ConfigError(f"round {round} is not in params.yaml: it has 1 to {params.last_round}")
    if name == "evaluation" and round not in params.evaluated:
        raise ConfigError(f"round {round} is not evaluated in params.yaml: evaluated = {params.evaluated}")
    return Stage(name, params, arm, params.evaluation.seed if seed is None else seed, round)
