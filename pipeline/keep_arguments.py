"""The options of the command line that say which rounds stay, and which remote of DVC has a part in it."""

from argparse import ArgumentParser


def add_keep(run: ArgumentParser, serve: ArgumentParser, validate: ArgumentParser, gc: ArgumentParser) -> None:
    """Add them to these commands."""
    for command, usual in ((run, None), (serve, None), (validate, None), (gc, "last,best,every=10")):
        words = f"rounds whose states stay: last,best=METRIC,every=N ({usual or 'all'})"
        command.add_argument("--keep", default=usual, metavar="ROUNDS", help=words)
    for command in (run, serve):
        words = "of DVC: stages come from it, and go to it as they end"
        command.add_argument("--remote", metavar="NAME", help=words)
    gc.add_argument("--drop", default="optimizer,online,ema", metavar="KINDS", help="of theirs; also rollouts, prompts")
    gc.add_argument("--remote", metavar="NAME", help="of DVC, to free as well (DVC's default, if there is one)")
    gc.add_argument("--yes", action="store_true", help="do it")
