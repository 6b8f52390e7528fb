"""What a stage has hashed of the files that it wrote, for DVC, which would read them all once more.

.rank-e/written/<artifact>.json: of each large file its MD5, and its size, time and inode when that was taken. A file
that is not as it was then is DVC's to hash; so is all, where a stage was killed before its note was written.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rank_e.io.files import replacing, state_of

FOLDER = Path(".rank-e") / "written"


def note_md5(artifact: Path, md5: Mapping[str, str]) -> None:
    """Note the MD5 of files of an artifact (a path within the project) that nobody writes any more."""
    found = {name: [value, *(state_of(artifact / name) or ())] for name, value in md5.items()}
    with replacing(_place(Path(), artifact), durable=False) as file:
        file.write_text(json.dumps(found), encoding="utf-8")


def noted_md5(project: Path, artifact: Path) -> dict[str, str]:
    """The MD5 of those files of an artifact that are as they were when it was taken; none without a sound note."""
    try:
        noted = json.loads(_place(project, artifact).read_text(encoding="utf-8"))
        states = {name: (md5, tuple(state)) for name, (md5, *state) in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {name: md5 for name, (md5, state) in states.items() if state_of(project / artifact / name) == state}


def _place(project: Path, artifact: Path) -> Path:
    return project / FOLDER / f"{'-'.join(artifact.parts[1:])}.json"
