"""The error that stops a run with one line instead of a traceback."""


class RankEError(Exception):
    """Something the user can fix: the message names the thing, the place and the fix, in one line."""
