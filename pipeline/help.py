"""What the command line says of itself: examples, its version, completion for a shell, and what was probably meant."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from rank_e.errors import nearest

SHELLS = ("bash", "zsh", "tcsh")
EXAMPLES = {
    "rank-e": ("rank-e validate", "rank-e run --jobs 2", "rank-e compare", 'eval "$(rank-e completion bash)"'),
    "run": ("rank-e run --jobs 2", "rank-e run --wait 3600", "rank-e run --no-track"),
    "serve": ('rank-e serve --cron "0 2 * * *" --timezone Europe/Berlin',),
    "compare": ("rank-e compare", "rank-e compare --csv > compared.csv"),
    "track": ("rank-e track", "rank-e track --follow --every 30"),
    "claim": ("rank-e claim --to docs/results --name claim",),
    "profile": ("rank-e profile tiny", "rank-e profile shapes"),
    "export": ("rank-e export --arm coevolved --round 60 --to exported",),
    "completion": (
        'eval "$(rank-e completion bash)"   # in ~/.bashrc',
        'eval "$(rank-e completion zsh)"    # in ~/.zshrc',
    ),
    "gc": ("rank-e gc --keep last,best,every=10", "rank-e gc --keep last --drop optimizer --yes"),
    "validate": ("rank-e validate --jobs 2",),
}
"""By command, what its help shows; each line is one that the shell takes."""
_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """Whole names of options alone, examples below the help, and after a wrong choice the nearest right one."""

    def __init__(self, **given: Any) -> None:
        name = given.get("prog", "").split(" ")[-1]
        super().__init__(
            **given,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="\n  ".join(["examples:", *EXAMPLES[name]]) if name in EXAMPLES else None,
        )

    def error(self, message: str) -> NoReturn:
        if wrong := _CHOICE.search(message):
            message += nearest(wrong[1], re.findall(r"'([^']*)'", wrong[2]))
        super().error(message)


class Version(argparse.Action):
    """`--version`: what is installed, looked up when it is asked for."""

    def __call__(
        self, parser: argparse.ArgumentParser, *_: str | Sequence[Any] | argparse.Namespace | None
    ) -> NoReturn:
        from importlib.metadata import version

        print(f"{parser.prog} {version('rank-e')}")
        parser.exit()


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script by which `shell`, one of SHELLS, completes the commands and options of `parser`."""
    import shtab

    script: str = shtab.complete(parser, shell)
    return script
