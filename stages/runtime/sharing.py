"""What two arms share is computed once: a stage with the inputs, params and code of another arm's.

Arms that part in some round (a decoder that is trained from there on) are one run before it. DVC's run-cache cannot see
that: it knows outputs by their paths. So a stage that computes for long writes down what its bytes come from, under
`.rank-e/shared`; another arm's stage that comes from the same waits until it is done, and copies its files under a
manifest of its own.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from math import inf
from pathlib import Path

from stages.runtime.artifacts import Artifact, ArtifactError, manifest_sha256, read_artifact
from stages.runtime.locks import Hold, Holder
from stages.runtime.phases import PHASES
from stages.runtime.stage import WORK, Stage

BUSY = "{holder} computes the same for another arm and holds {path}: wait for it, or end it"


def once(stage: Stage, inputs: Mapping[str, Artifact], make: Callable[[], None]) -> None:
    """Write the stage's artifact from these inputs: a copy of another arm's where that is the same, else by `make`.

    Where nobody has noted what the stage reads besides (a stage called from Python), nothing is shared.
    """
    if stage.recorded is None:
        make()
        return
    place = WORK / "shared" / _digest(stage, inputs, stage.recorded.data_digest())
    hold = Hold(place.with_suffix(".lock"), inf, Holder(os.getpid(), f"stage {stage.key}", ""), BUSY)
    with ExitStack() as held:
        with PHASES.phase("wait"):
            held.enter_context(hold)
        twin = _twin(stage, place)
        if twin is not None:
            _copy(stage, twin, inputs)
            return
        began = time.monotonic()
        make()
        made = {"path": stage.path(stage.name).as_posix(), "sha256": manifest_sha256(stage.path(stage.name))}
        place.write_text(json.dumps(made | {"seconds": round(time.monotonic() - began, 3)}), encoding="utf-8")


def _digest(stage: Stage, inputs: Mapping[str, Artifact], data: str) -> str:
    """Of everything that decides the bytes but the arm's name: an arm's own params are among those that it used."""
    files = {name: artifact.manifest["files"] for name, artifact in inputs.items()}
    parts = [stage.name, stage.seed, stage.round, stage.used, stage.code, files, data]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _twin(stage: Stage, place: Path) -> Artifact | None:
    """The artifact of another arm that was written down here, if it is still what it was."""
    with suppress(OSError, ValueError, LookupError, ArtifactError):
        known = json.loads(place.read_text(encoding="utf-8"))
        path = Path(known["path"])
        if path == stage.path(stage.name) or manifest_sha256(path) != known["sha256"]:
            return None
        twin = read_artifact(path, stage.name, lineage=False)
        twin.verify()
        if not twin.removed and twin.manifest["deterministic"] == stage.deterministic:
            stage.shared.update({"with": path.parts[1], "seconds": known["seconds"]})
            return twin
    return None


def _copy(stage: Stage, twin: Artifact, inputs: Mapping[str, Artifact]) -> None:
    print(f"{stage.title}: the same as {twin.path}, which is copied", flush=True)
    _ = stage.events  # opened, and so emptied: no step is taken
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with stage.writer(stage.name, seed=twin.manifest["seed"], inputs=paths) as out:
        out.copy(twin)
