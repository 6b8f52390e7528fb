"""The embedded world; its base's files say what they are of."""

from rank_e.io.manifest import Format

FORMAT = Format("shapes", "check it out again or run `make base`")
