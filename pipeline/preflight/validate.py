"""What `rank-e validate` looks at before anything runs, every problem at once: a line each with place and fix."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.graph import load_graph, make_groups
from pipeline.lock_text import lock_problem
from pipeline.preflight.choices import choices
from pipeline.preflight.estimate import Memory, disk, memory, summary
from pipeline.preflight.named import missing_files
from pipeline.preflight.places import odd_places
from pipeline.retention import Keep
from rank_e.backbones.info import Sizes
from rank_e.backbones.sizes import published, read_base
from rank_e.config import Params, load
from rank_e.errors import RankEError
from rank_e.io.files import gigabytes
from stages.code import code_lists

SPARE = 1.1
"""The estimate of a device's memory times this must be there: allocators lose a part to fragmentation."""
THREADS = 64
"""Threads that a run starts with: `run --jobs 2` had 51 at two cores, in its server, tracker, DVC and stages."""


@dataclass(frozen=True)
class Machine:
    """Free bytes of disk, bytes of main memory, bytes of the run's device (None: there is no such device), threads."""

    disk: int
    memory: int
    device: int | None
    threads: int


def this_machine(params: Params) -> Machine:
    """What is here. torch is imported only where runtime.device is a GPU."""
    device: int | None = 0
    if params.runtime.device != "cpu":
        import torch

        number = int(params.runtime.device.partition(":")[2] or 0)
        present = torch.cuda.is_available() and number < torch.cuda.device_count()
        device = torch.cuda.get_device_properties(number).total_memory if present else None
    return Machine(shutil.disk_usage(Path.cwd()).free, psutil.virtual_memory().total, device, startable())


def startable() -> int:
    """How many threads can be started here, up to THREADS: a user's limit or a container's counts what runs already."""
    end, started = threading.Event(), list[threading.Thread]()
    try:
        while len(started) < THREADS:
            thread = threading.Thread(target=end.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:  # the limit is reached
        pass
    finally:
        end.set()
        for thread in started:
            thread.join()
    return len(started)


def check(jobs: int, keep: Keep | None = None) -> list[str]:
    """Look at everything; what the run will be, in lines. RankEError holds every problem, a line each.

    keep: the rounds whose states stay; None: all.
    """
    params = load()
    problems: list[str] = []
    stages = 0
    try:
        graph = load_graph(Path())
        stages = sum(len(group.nodes) for group in make_groups(graph))
        if "code" in {node.name for node in graph}:
            code_lists(Path(), params)  # names a module of the user's own that DVC would not watch
    except RankEError as error:
        problems.append(str(error))
    sizes, found = base_problems(params)
    problems += [*found, *missing_files(params), *odd_places(params), *filter(None, [lock_problem(Path())])]
    machine = this_machine(params)
    if machine.device is None:
        problems.append(
            f"runtime.device = {params.runtime.device}: there is no such device here; use cpu or another machine"
        )
    if sizes is not None:
        needed = sum(disk(sizes, params, keep).values())
        problems += room_problems(params, machine, (needed - held()) * copies(), memory(sizes, params), jobs)
    if problems or sizes is None:
        raise RankEError("\n".join(dict.fromkeys(problems)))
    numbers = {"arm": len(params.arms), "seed": len(params.seeds), "round": len(params.rounds)}
    counts = ", ".join(f"{number} {name}{'s' * (number > 1)}" for name, number in numbers.items())
    return [f"params.yaml: {counts}, {stages} stages", *summary(sizes, params, keep), *choices(params)]


def base_problems(params: Params) -> tuple[Sizes | None, list[str]]:
    """The base's sizes, and what is wrong with its folder.

    Where they cannot be read: those of the published model that its name stands for, else None.
    """
    name, folder = params.backbone.name, Path(params.backbone.base)
    known: Sizes | None = None
    try:
        known = published(name, folder)  # room can be reckoned before a base is converted
        sizes, found = read_base(name, folder)
    except RankEError as error:
        return known, [str(error)]
    for arm_name in params.arms:
        top_k = params.arm(arm_name).rollouts.top_k
        if top_k > sizes.vocab:
            found.append(f"arms.{arm_name}: rollouts.top_k = {top_k} exceeds the vocabulary of {sizes.vocab}; lower it")
    return sizes, found


def held() -> int:
    """Bytes of artifacts that are there already: an earlier part of the run."""
    return sum(path.stat().st_size for path in Path("artifacts").rglob("*") if path.is_file())


def copies() -> int:
    """How often this disk holds an artifact's bytes: once where DVC can link its cache to them, else twice."""
    with tempfile.TemporaryDirectory(prefix=".links-", dir=Path.cwd()) as folder:
        file = Path(folder) / "file"
        file.touch()
        try:
            file.with_name("link").hardlink_to(file)
        except OSError:
            return 2
    return 1


def room_problems(params: Params, machine: Machine, needed: int, need: Memory, jobs: int) -> list[str]:
    """Disk, memory and threads that the run will want and the machine does not have; `jobs` stages run at a time."""
    found = []
    if machine.threads < THREADS:
        fix = "raise `ulimit -u` or the container's limit of processes, or end what else runs"
        found.append(f"processes: a run takes {THREADS} threads, {machine.threads} can be started here; {fix}")
    if needed > machine.disk:
        fix = "free some, give --keep (docs/dvc.md), or shorten rounds, seeds or arms"
        found.append(f"disk: the run needs {gigabytes(needed)} more, {gigabytes(machine.disk)} are free; {fix}")
    fewer = " or run with --jobs 1" if jobs > 1 else ""
    at_once = f" for {jobs} at a time" if jobs > 1 else ""
    if need.host * jobs > machine.memory:
        wanted, there = gigabytes(need.host * jobs), gigabytes(machine.memory)
        fix = f"lower policy.microbatch_size, prompts.per_round or evaluation.real_images{fewer}"
        found.append(f"main memory: a stage needs about {wanted}{at_once}, the machine has {there}; {fix}")
    if machine.device is not None and need.device * jobs * SPARE > machine.device:
        wanted, there = gigabytes(need.device * jobs * SPARE), gigabytes(machine.device)
        fix = f"lower policy.microbatch_size and decoder.microbatch_size{fewer}"
        device = params.runtime.device
        found.append(f"memory of {device}: a stage needs about {wanted}{at_once}, it has {there}; {fix}")
    return found
