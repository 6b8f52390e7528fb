"""DVC as the project runs it: files that a stage has hashed as it wrote them are not read once more to record them.

DVC keeps a table of the files that it has hashed, with size, time and inode of each. The MD5s that a stage has noted
(`stages.runtime.written`) go into it before DVC records the stage's outputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.output import Output
from dvc_data.hashfile.hash_info import HashInfo

from stages.runtime.manifests import ARTIFACTS
from stages.runtime.written import noted_md5


@contextmanager
def knowing_hashes() -> Iterator[None]:
    """While the block runs, DVC in this process takes over what stages have noted of their files."""
    save = Output.save

    def save_known(out: Output) -> None:
        place = Path(out.def_path)
        if out.use_cache and place.parts[:1] == ARTIFACTS.parts:
            md5 = noted_md5(Path(out.repo.root_dir), place)
            known = [(out.fs.join(out.fs_path, name), HashInfo("md5", value), None) for name, value in md5.items()]
            out.repo.state.save_many(known, out.fs)
        save(out)

    Output.save = save_known
    try:
        yield
    finally:
        Output.save = save
