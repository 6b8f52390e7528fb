"""Stage reference: what is skipped among the real images is told, whenever the stage was killed."""

from pathlib import Path

import torch

from rank_e.config import load
from rank_e.data.dataset import Originals
from rank_e.io.sealed import read_json
from stages.real_images import RealImages
from stages.runtime.stage import make_stage


class Damaged:
    """A dataset whose samples 1 and 4 cannot be read; what it skipped it knows only of this process, as files do."""

    def __init__(self) -> None:
        self.met: set[int] = set()

    def originals(self, start: int, stop: int, prompts: list[str], seed: int) -> Originals:
        self.met |= {1, 4} & set(range(start, stop))
        return Originals([torch.zeros(3, 2, 2, dtype=torch.uint8)] * (stop - start), ["a"] * (stop - start))

    def skipped(self) -> list[dict[str, str]]:
        return [{"name": f"{index}.jpg", "reason": "is truncated"} for index in sorted(self.met)]


def test_a_resumed_stage_still_names_what_it_skipped_before(tmp_path: Path) -> None:
    stage, path = make_stage("reference", load()), tmp_path / "state" / "skipped.json"
    whole = RealImages(stage, Damaged(), ["a"], tmp_path / "other.json")  # type: ignore[arg-type]
    for start in (0, 3):
        whole.originals(start, start + 3)
    first = RealImages(stage, Damaged(), ["a"], path)  # type: ignore[arg-type]
    first.originals(0, 3)
    assert [row["name"] for row in read_json(path)] == ["1.jpg"]
    resumed = RealImages(stage, Damaged(), ["a"], path)  # type: ignore[arg-type]
    resumed.originals(3, 6)
    assert [row["name"] for row in resumed.skipped] == ["1.jpg", "4.jpg"]
    resumed.originals(0, 3)  # read again: told once
    assert resumed.skipped == whole.skipped
