"""The error that stops a run with one line instead of a traceback."""


class RankEError(Exception):
    """Something the user can mend: the message names the thing, the place and the mend, in one line."""
