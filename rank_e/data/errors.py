"""What goes wrong with data: files that stop a run at once, and samples that are skipped and counted."""

from rank_e.errors import RankEError


class DataError(RankEError):
    """A prompt or image file that cannot be used; names the file, the line or key, and the fix."""


class BadSampleError(DataError):
    """One sample that cannot be used (no caption, no image, broken bytes); `reason` says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}; fix or remove the sample")
        self.name = name
        self.reason = reason
