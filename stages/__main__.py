"""`python -m stages NAME [--arm A] [--seed S] [--round R]`: run one stage, here or in a warm process.

With RANK_E_WARM set to the socket of a `stages.runtime.warm` server, the stage runs in a fork of it, where the heavy
libraries are imported already. This process waits, hands on the exit code, and takes the stage with it if it dies.
"""

import os
import sys

from stages.runtime.process import follow_parent, run_module
from stages.runtime.warm import SOCKET, ask


def main() -> None:
    """Run the stage named first; exits with its code."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m stages NAME [--arm A] [--seed S] [--round R]")
    if server := os.environ.get(SOCKET):
        follow_parent()
        sys.exit(ask(server, sys.argv[1:]))
    run_module(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    main()
