"""`rank-e run`: the whole of it, or a part, here and now, in the project's folder."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.dvc import ending_children
from pipeline.guardian import leave, working
from pipeline.handover import between
from pipeline.plan import Choice, Plan, check_choice, make_plan, write_part
from pipeline.repair import cache_folder, distrust, repair
from pipeline.tracking.beside import tracker_beside
from pipeline.tracking.stamp import pages, tracked
from rank_e.config import load
from rank_e.errors import RankEError
from stages.runtime.artifacts import ArtifactError


def run_here(
    choice: Choice,
    jobs: int,
    retries: int,
    wait: float,
    track: bool,
    keep: str | None,
    remote: str | None,
    validate: Callable[[], None],
) -> None:
    """Lock the project, validate, repair, ask DVC what there is to do, do that with the tracker beside it, show it.

    Where there is nothing to do, neither Prefect nor, with everything copied, MLflow is started. wait: seconds for who
    works here. keep, remote: as `pipeline.handover.between` takes them.
    """
    project = Path.cwd()
    check_choice(project, choice, load())  # here or nowhere is a project
    with working(project, "rank-e run", wait), ending_children(leave):
        validate()
        for line in repair(Path(), cache_folder(Path()), beginning=True):
            print(line, flush=True)
        plan = make_plan(project, choice)
        print("\n".join(plan.said), flush=True)
        if plan.groups and os.environ.get("PREFECT_API_URL"):
            from pipeline.serving import check_server

            check_server()
        copied = track and (bool(plan.groups) or not tracked(project))
        with tracker_beside(project, copied) as untracked, between(project, keep, remote) as failures:
            if plan.groups:
                from pipeline.serving import run

                run(project, jobs, retries, choice)
            elif plan.report:
                print(write_part(project, plan))
        try:
            print_ending(plan)
        except ArtifactError:
            distrust(project)
            raise
    first = f" (first: {activation})" if (activation := activate_first()) else ""
    print("Where to look next: report/index.html has every seed, and the images")
    print(f"  rank-e compare: every difference and interval{first}")
    if track:
        print(f"  {pages()}   the curves of every step")
    if wrong := [*untracked, *failures]:
        raise RankEError(f"every stage is done, but {wrong[0]}")


def activate_first() -> str | None:
    """The command that puts `rank-e` on the PATH, where it is not there yet and there is one."""
    script = Path(sys.executable).parent / "activate"
    # `make` puts it on the PATH for its own commands, which says nothing of the shell that is left afterwards.
    activated = os.environ.get("VIRTUAL_ENV") == sys.prefix
    if activated or not script.exists() or (shutil.which("rank-e") is not None and "MAKELEVEL" not in os.environ):
        return None
    return f". {shlex.quote(os.path.relpath(script))}"


def print_ending(plan: Plan) -> None:
    """One table of what changed; what of it is settled, the shipped claim says."""
    from stages.report.claim import read_claim
    from stages.report.data import load_results
    from stages.report.ending import closing, ending
    from stages.report.present import present

    whole = load()
    claim = read_claim(Path(), whole)
    params, missing = present(whole, Path(), plan.stale_places)
    print(ending(load_results(params, Path(), partial=True, missing=missing), claim))
    print(closing(claim))
    if missing:
        print(f"a part of the run: {len(missing)} artifacts are not here or not up to date, first: {missing[0]}")
