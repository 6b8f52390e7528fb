"""The error that stops a run with one line instead of a traceback."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class RankEError(Exception):
    """Something the user can fix: the message names the thing, the place and the fix, in one line."""


LONGEST = 200  # characters of a name that an error shows
NAMED = 5  # of many names, how many an error shows


def listed(names: Sequence[str]) -> str:
    """The first of many names as an error shows them, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(_shown, names[:NAMED])) + more


def _shown(name: str) -> str:
    """A name on one line: what cannot be printed is escaped, and of a very long one the beginning is enough."""
    shown = name if name.isprintable() else repr(name)[1:-1]
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` of the known name that is most like `name`; nothing where none is like it."""
    found = get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""
