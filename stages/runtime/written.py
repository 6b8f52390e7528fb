"""What a stage has hashed of the files that it wrote, for DVC, which would read them all once more.

.rank-e/written/<artifact>.json: of each large file its MD5, and its size, time and inode when that was taken. A file
that is not as it was then is DVC's to hash; so is all, where a stage was killed before its note was written.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rank_e.io.files import State, replacing, state_of

FOLDER = Path(".rank-e") / "written"
_NAME, _MD5 = re.compile(r"[\w.-]{1,200}"), re.compile(r"[0-9a-f]{32}")


def note_md5(artifact: Path, found: Mapping[str, tuple[str, State]]) -> None:
    """Note the MD5 of files of an artifact (a path within the project), with their state when it was taken.

    Without a note DVC reads the files itself: where none can be written, the artifact is as good.
    """
    with suppress(OSError), replacing(_place(Path(), artifact), durable=False) as file:
        file.write_text(json.dumps({name: [md5, *state] for name, (md5, state) in found.items()}), encoding="utf-8")


def noted_md5(project: Path, artifact: Path) -> dict[str, str]:
    """The MD5 of those files of an artifact that are as they were when it was taken; none without a sound note."""
    try:
        noted = json.loads(_place(project, artifact).read_text(encoding="utf-8"))
        known = {name: (md5, tuple(state)) for name, (md5, *state) in noted.items()}
        if not all(_NAME.fullmatch(name) and _MD5.fullmatch(md5) for name, (md5, _) in known.items()):
            return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: md5 for name, (md5, state) in known.items() if state_of(project / artifact / name) == state}


def _place(project: Path, artifact: Path) -> Path:
    return project / FOLDER / f"{'-'.join(artifact.parts[1:])}.json"
