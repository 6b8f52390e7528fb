"""The command `rank-e`. Heavy imports wait until a command needs them."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.help import SHELLS, Parser, Version, completion
from pipeline.keep_arguments import add_keep
from rank_e.backbones import BACKBONES
from rank_e.backbones.info import backbone_info
from rank_e.errors import RankEError
from stages.runtime.failures import one_line
from stages.runtime.locks import patience, project_lock, seconds
from stages.runtime.manifests import ARTIFACTS


def parser() -> argparse.ArgumentParser:
    """The command line; each command names the function that does it."""
    main_parser = Parser(prog="rank-e", description="RankE: post-training of discrete text-to-image models.")
    main_parser.add_argument("--version", action=Version, nargs=0, help="print the version and end")
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, do: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(do=do)
        return command

    run = add("run", do_run, "run every stage that has something to do, several at a time, then print the tables")
    serve = add("serve", do_serve, "offer the run to a Prefect server (PREFECT_API_URL), on a schedule if wanted")
    serve.add_argument("--cron", metavar="EXPRESSION", help='such as "0 3 * * *"')
    serve.add_argument("--timezone", metavar="ZONE", help="of the expression, such as Europe/Berlin (UTC)")
    for command in (run, serve):
        command.add_argument("--jobs", type=positive, default=2, metavar="N", help="stages at a time (2)")
        command.add_argument("--retries", type=count, default=1, metavar="N", help="tries after a failure (1)")
    part = run.add_argument_group("a part of the run (all but --rounds several times, if wanted)")
    part.add_argument("--arm", action="append", default=[], metavar="NAME", help="this arm alone")
    part.add_argument("--seed", action="append", default=[], type=count, metavar="S", help="this seed alone")
    part.add_argument("--rounds", type=positive, metavar="N", help="up to round N")
    part.add_argument("--only", action="append", default=[], metavar="STAGE", help="this stage and what it needs")
    run.add_argument("--no-track", action="store_true", help="copy nothing to MLflow")
    compare = add("compare", do_compare, "print base, arms and seeds side by side, with paired differences")
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON value: levels, differences, intervals, p-values")
    form.add_argument("--csv", action="store_true", help="CSV: a row for each level and each difference")
    track = add("track", do_track, "copy what the stages wrote to MLflow")
    track.add_argument("--follow", action="store_true", help="go on until SIGTERM or Ctrl-C")
    track.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="time between copies (10)")
    add("report", do_report, "write report/index.html from the artifacts")
    claim = add("claim", do_claim, "write the run's numbers with intervals and p-values, and figures, to a folder")
    claim.add_argument("--to", type=Path, default=Path("docs/results"), metavar="FOLDER", help="(docs/results)")
    claim.add_argument("--name", default="claim", help="of the JSON file and of the figures (claim)")
    profile = add("profile", do_profile, "write the whole of profiles/NAME.yaml to params.yaml for the next run")
    profile.add_argument("name")
    convert = add("convert", do_convert, "turn official checkpoints into a base folder of safetensors, once")
    backbones = convert.add_subparsers(required=True, metavar="BACKBONE", dest="backbone")
    for name in sorted(BACKBONES):
        converter = backbone_info(name).converter
        if converter is not None:
            command = backbones.add_parser(name, help=converter.summary, description=converter.summary)
            converter.add_arguments(command)
            command.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="a new folder")
            command.set_defaults(converter=converter)
    export = add("export", do_export, "write a trained policy and decoder in the layout that the base came from")
    export.add_argument("--arm", required=True)
    export.add_argument("--seed", type=count, metavar="S", help="needed where params.yaml has several")
    export.add_argument("--round", required=True, type=count, metavar="N", help="0: what the arm began with")
    export.add_argument("--weights", choices=("ema", "online"), default="ema", help="ema is what is evaluated (ema)")
    export.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="a folder that does not exist yet")
    repair = add("repair", do_repair, "hash artifacts and DVC's cache; the next run makes again what is removed")
    gc = add("gc", do_gc, "free round states that are not kept: workspace, DVC's cache and remote; shows them first")
    for command in (run, serve, repair, gc):
        words = "for who works here (RANK_E_WAIT, or 0)"
        command.add_argument("--wait", type=seconds, default=patience(), metavar="SECONDS", help=words)
    validate = add("validate", do_validate, "check params, graph, files and room, and say what the run will take")
    validate.add_argument("--jobs", type=positive, default=1, metavar="N", help="as for `run`: stages at a time (1)")
    add_keep(run, serve, validate, gc)
    complete = add("completion", do_completion, "print the script by which a shell completes these commands")
    complete.add_argument("shell", choices=SHELLS)
    return main_parser


def count(text: str) -> int:
    """A whole number from 0 on."""
    return _number(text, 0)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    return _number(text, 1)


def _number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} or more")
    return int(text)


def do_run(arguments: argparse.Namespace) -> None:
    """Run all that has something to do, or a part of it, then show the result."""
    from pipeline.plan import Choice
    from pipeline.running import run_here

    given = arguments
    choice = Choice(tuple(given.arm), tuple(given.seed), tuple(given.only), given.rounds)
    more = (given.wait, not given.no_track, given.keep, given.remote)
    run_here(choice, given.jobs, given.retries, *more, lambda: do_validate(given))


def do_serve(arguments: argparse.Namespace) -> None:
    """Serve the flow; needs a Prefect server."""
    if not os.environ.get("PREFECT_API_URL"):
        raise RankEError("PREFECT_API_URL is not set: `prefect server start`, then set it to http://127.0.0.1:4200/api")
    from pipeline.serving import check_server, schedule, serve

    times = schedule(arguments.cron, arguments.timezone)
    check_server()
    do_validate(arguments)
    if arguments.remote is not None:
        from pipeline.handover import share_by

        share_by(Path.cwd(), arguments.remote)
    if times is not None:
        print(
            f"the run starts at {times.cron} in the time zone {times.timezone}; --timezone chooses another", flush=True
        )
    given = arguments
    serve(Path.cwd(), times, given.jobs, given.retries, given.wait, given.keep, given.remote)


def do_compare(arguments: argparse.Namespace) -> None:
    """Print what has been computed so far: tables, or the same numbers for a program."""
    from rank_e.config import load
    from stages.report.data import load_results

    results = load_results(load(), Path(), partial=True)
    if arguments.json or arguments.csv:
        from stages.report.summary import csv_text, json_text

        print(json_text(results) if arguments.json else csv_text(results), end="")
        if results.missing:
            said = f"{len(results.missing)} artifacts are not written yet, first: {results.missing[0]}"
            print(said, file=sys.stderr)
        return
    from rich.console import Console

    from stages.report.terminal import print_results

    print_results(results, Console())


def do_track(arguments: argparse.Namespace) -> None:
    """Copy to MLflow once, or until told to stop."""
    stopped = threading.Event()
    if arguments.follow:
        # Before the slow imports: a SIGTERM that comes during them must still lead to a last copy.
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, lambda *_: stopped.set())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.nice(10)  # training comes first
    parent = os.getppid()
    from pipeline.tracking.following import follow
    from pipeline.tracking.tracking import Tracker
    from rank_e.config import load

    def say(words: str) -> None:
        print(f"tracking: {words}", flush=True)

    if arguments.follow:

        def stop(seconds: float) -> bool:
            return stopped.wait(seconds) or os.getppid() != parent

        follow(lambda: Tracker(Path(), load()), stop, say, arguments.every)
    else:
        say(str(Tracker(Path(), load()).sync()))


def do_report(_: argparse.Namespace) -> None:
    """Write the page without DVC; torch stays out."""
    from rank_e.config import load
    from stages.report.writing import write_report

    print(write_report(load(), Path()))


def do_claim(arguments: argparse.Namespace) -> None:
    """Write the claim of the finished run in this folder."""
    from pipeline.claim import write_claim
    from rank_e.config import load

    check_place(arguments.to)
    print(write_claim(load(), Path(), arguments.to, arguments.name))


def do_profile(arguments: argparse.Namespace) -> None:
    """Write the whole of a profile over params.yaml once it has proved valid; an edited params.yaml is kept."""
    from pipeline.profile import write_profile

    with project_lock(Path(), "rank-e profile", patience()):  # a run that works goes by its params
        print(write_profile(Path(), arguments.name))


def check_place(path: Path) -> None:
    """RankEError if a folder to be written has no name, lies among the artifacts, or is a link: what lies behind it
    would be written over, or nothing does."""
    if path == Path():
        raise RankEError("--to names no folder; give a new one's name")
    if ARTIFACTS.resolve() in (path.resolve(), *path.resolve().parents):
        raise RankEError(f"--to {path} lies among the artifacts, which the report is made from; name another folder")
    if path.is_symlink():
        raise RankEError(f"--to {path} is a link to {os.readlink(path)}; name the folder itself, or remove the link")


def do_convert(arguments: argparse.Namespace) -> None:
    """Convert, then say what lies there now."""
    check_place(arguments.to)
    manifest = arguments.converter.convert(arguments, arguments.to)
    print(f"{arguments.to}: {manifest['format']}, from {', '.join(manifest['origin'])}")


def do_export(arguments: argparse.Namespace) -> None:
    """Export, then say what lies there now."""
    from pipeline.export import export, summary
    from rank_e.config import load

    check_place(arguments.to)
    params, given = load(), arguments
    manifest = export(params, given.arm, given.seed, given.round, given.weights, given.to)
    print(summary(given.to, backbone_info(params.backbone.name).exported, manifest))


def do_validate(arguments: argparse.Namespace) -> None:
    """Check parameters, graph, files, device and room; say what the run will take."""
    from pipeline.preflight.validate import check
    from pipeline.retention import read_keep

    keep = None if arguments.keep is None else read_keep(arguments.keep)
    print("\n".join(check(arguments.jobs, keep)), flush=True)


def do_repair(arguments: argparse.Namespace) -> None:
    """Remove what is not what was written, before DVC would restore it or a stage refuse it."""
    from pipeline.lock import owning
    from pipeline.repair import cache_folder, repair

    cache = cache_folder(Path())
    with owning(Path.cwd(), "rank-e repair", arguments.wait):
        print("\n".join(repair(Path(), cache)), flush=True)


def do_completion(arguments: argparse.Namespace) -> None:
    """Print the script for a shell to read."""
    print(completion(parser(), arguments.shell))


def do_gc(arguments: argparse.Namespace) -> None:
    """Say what would be freed, or free it."""
    from pipeline.collecting import collect_rounds

    collect_rounds(Path.cwd(), arguments)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; an error that the user can meet is printed without a traceback, with exit status 1."""
    with one_line("rank-e"):
        given = parser().parse_args(arguments)
        given.do(given)


if __name__ == "__main__":
    main()
