"""`rank-e validate`: every problem at once before anything runs; a good folder passes and says what it will take."""

import json
import runpy
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from pipeline import cli
from pipeline.preflight import named, validate
from pipeline.preflight.estimate import Memory
from pipeline.preflight.factories import factory_problems
from pipeline.preflight.validate import THREADS, Machine, room_problems, startable, this_machine
from rank_e.backbones.sizes import read_base
from rank_e.config import load
from rank_e.config.profiles import resolve
from rank_e.errors import RankEError
from rank_e.evaluation.hpsv2 import STYLES
from rank_e.io.headers import read_header
from rank_e.io.manifest import seal_manifest
from tests.helpers import tiny_janus
from tests.helpers.llamagen_files import Official
from tests.helpers.t5_files import write_t5

ROOT = Path(__file__).parents[3]
Change = Callable[[dict[str, Any]], None]


def write_params(change: Change) -> None:
    """params.yaml of the tiny profile after a change."""
    data = YAML(typ="safe", pure=True).load(resolve(ROOT / "profiles/tiny.yaml"))
    change(data)
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(data, file)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (tmp_path / "rank_e").symlink_to(ROOT / "rank_e")
    shutil.copytree(ROOT / "assets/shapes", tmp_path / "assets/shapes")
    monkeypatch.chdir(tmp_path)
    write_params(lambda data: None)
    return tmp_path


def problems() -> list[str]:
    with pytest.raises(SystemExit) as end:
        cli.main(["validate"])
    lines = str(end.value.code).splitlines()
    assert all(line.startswith("rank-e: ") for line in lines)
    return [line.removeprefix("rank-e: ") for line in lines]


def test_a_good_folder_passes_and_says_what_it_takes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["validate"])
    words = capsys.readouterr().out
    assert "params.yaml: 2 arms, 1 seed, 2 rounds" in words and "disk: " in words and "main memory" in words
    assert not (project / "artifacts").exists()


def test_a_module_of_ones_own_that_dvc_would_not_watch_is_named(project: Path) -> None:
    (project / "stages").symlink_to(ROOT / "stages")
    (project / "mine.py").write_text("def reward(folder, device):\n    return None\n")

    def change(data: dict[str, Any]) -> None:
        data["ranking"]["rewards"]["mine"] = {"kind": "mine:reward", "weight": 1.0, "normalise": "none"}

    write_params(change)
    unseen = "its changes would go unseen; add it to the deps of the stage `code` in dvc.yaml"
    (project / "mine.py").write_text("import other\n\n\ndef reward(folder, device):\n    return None\n")
    (project / "other.py").touch()
    assert problems() == [f"mine.py: {unseen}", f"other.py: {unseen}"]
    (project / "mine.py").write_text("def reward(:\n")
    assert problems()[-1] == (
        "ranking.rewards.mine.kind = mine:reward: mine is not Python: invalid syntax (mine.py, line 1); fix it"
    )
    (project / "mine.py").write_text("def reward(folder, device):\n    return None\n")
    pipeline = project / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("      - rank_e\n", "      - rank_e\n      - mine.py\n", 1))
    cli.main(["validate"])


@pytest.mark.parametrize(
    ("takes", "keys", "problem"),
    [
        ("folder, device, power=2.0", {}, None),
        ("folder, device, power", {"power": 2.0}, None),
        ("folder, device, **keys", {"power": 2.0}, None),
        ("*given, power", {"power": 2.0}, None),
        ("folder, device", {"power": 2.0}, "takes no power; correct the keys, or the function"),
        ("folder, device, /, *, power", {}, "needs power; give it as a key"),
        ("folder, device, power, scale=1", {"scale": 2}, "needs power; give it as a key"),
        ("folder", {}, "takes folder; make it take a folder, a device and the keys"),
        ("", {}, "takes nothing; make it take a folder, a device and the keys"),
    ],
)
def test_a_factory_of_ones_own_must_take_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: str, keys: dict[str, float], problem: str | None
) -> None:
    """As Python itself takes them."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(f"def made({takes}):\n    return None\n")
    found = list(factory_problems("x.kind", "own:made", keys))
    assert found == ([] if problem is None else [f"x.kind = own:made: {problem}"])
    made = runpy.run_path("own.py")["made"]
    try:
        made(Path(), "cpu", **keys)
    except TypeError:
        assert problem is not None
    else:
        assert problem is None


@pytest.mark.parametrize("again", ["made = partial(made, power=2)", "@wraps\ndef made(folder): ..."])
def test_a_factory_that_is_bound_again_or_decorated_is_left_to_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("twice.py").write_text(f"def made(folder):\n    return None\n{again}\n")
    assert list(factory_problems("x.kind", "twice:made", {"power": 2.0})) == []


def test_a_dataset_of_ones_own_must_be_there(project: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["data"]["training"] = {"kind": "no.such:dataset", "folder": "assets"}
        data["data"]["held_out"]["folder"] = "nowhere"

    write_params(change)
    assert problems()[-2:] == [
        "data.training.kind = no.such:dataset: there is no module no.such; correct the path",
        "data.held_out.folder: folder nowhere does not exist; get it (docs/reproduce.md) or correct the path",
    ]


def test_every_problem_is_listed_at_once(project: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["backbone"]["base"] = "models/nothing"
        data["data"]["training"] = {
            "kind": "webdataset", "folder": "assets", "tars": "*.tar", "column": None,
            "prompts": {"file": "p.txt", "column": None, "category": None},
            "max_bad_share": 0.0, "max_image_pixels": 1_000_000,
        }  # fmt: skip
        data["data"]["held_out"] = {
            "kind": "coco", "folder": "coco", "split": "val2014", "every_caption": False,
            "prompts": None, "max_bad_share": 0.0, "max_image_pixels": 1_000_000,
        }  # fmt: skip
        data["weights"] = {"training": "models/training", "evaluation": "models/evaluation"}
        data["ranking"]["rewards"] = {
            "clip": {"kind": "clip", "file": "ViT-L-14.pt", "weight": 1.0, "normalise": "none"},
            "mine": {"kind": "rank_e.shapes.metrics:nought", "weight": 1.0, "normalise": "none"},
        }
        data["decoder"]["perceptual"] = {"kind": "lpips", "file": "vgg16.pth"}
        data["decoder"]["discriminator"] = {
            "kind": "projected", "dinov3": "dinov3", "efficientnet": "lite0.pth",
            "efficientnet_name": "tf_efficientnet_lite0", "image_size": 256, "channels": 64,
        }  # fmt: skip
        data["evaluation"]["distances"] = {"fd": {"kind": "dinov2", "file": "dinov2"}, "x": {"kind": "no.such:thing"}}
        data["evaluation"]["scores"] = {"clip": {"kind": "clip_score", "file": "ViT-B-32.pt"}}
        data["evaluation"]["matched"] = None
        data["evaluation"]["benchmarks"] = {
            "hps": {"kind": "hpsv2", "prompts": "hpd", "per_style": 0, "file": "HPS.pt", "model": "ViT-H-14"},
            "geneval": {
                "kind": "geneval",
                "prompts": "g.jsonl",
                "samples_per_prompt": 4,
                "detector": "m",
                "clip": "c",
                "model": "x",
            },
        }

    write_params(change)
    (project / "assets/p.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    found = problems()
    assert any("data.training.prompts.file: file assets/p.txt is a Git LFS pointer" in line for line in found)
    for place in (
        "backbone.base: models/nothing/base.json does not exist",
        "data.training.tars: no file assets/*.tar",
        "data.training.prompts.file: file assets/p.txt",
        "data.held_out.folder: folder coco",
        "weights.training: folder models/training",
        "weights.evaluation: folder models/evaluation",
        "ranking.rewards.clip.file: file models/training/ViT-L-14.pt",
        "ranking.rewards.mine.kind = rank_e.shapes.metrics:nought: rank_e.shapes.metrics has no nought",
        "decoder.perceptual.file: file models/training/vgg16.pth",
        "decoder.discriminator.dinov3: folder models/training/dinov3",
        "decoder.discriminator.efficientnet: file models/training/lite0.pth",
        "evaluation.distances.fd.file: folder models/evaluation/dinov2",
        "evaluation.distances.x.kind = no.such:thing: there is no module no.such",
        "evaluation.scores.clip.file: file models/evaluation/ViT-B-32.pt",
        "evaluation.benchmarks.hps.prompts: file models/evaluation/hpd/anime.json",
        "evaluation.benchmarks.hps.file: file models/evaluation/HPS.pt",
        "evaluation.benchmarks.geneval.prompts: file models/evaluation/g.jsonl",
        "evaluation.benchmarks.geneval.detector: folder models/evaluation/m",
        "evaluation.benchmarks.geneval.clip: file models/evaluation/c",
    ):
        assert any(line.startswith(place) and ";" in line for line in found), place
    assert len(found) == len(set(found)) == 19 + 3  # hpsv2's other three styles


def test_a_base_that_contradicts_itself_is_named(project: Path) -> None:
    folder = project / "assets/shapes"
    manifest = json.loads((folder / "base.json").read_text())
    manifest["policy"]["vocab_size"] += 1
    manifest["tokenizer"]["image_size"] *= 2
    seal_manifest(folder, manifest)
    (folder / "text.safetensors").unlink()
    found = "\n".join(problems())
    for part in (
        "96 pixels give",
        "is not the tokenizer's codebook",
        "tok_embeddings.weight has",
        "assets/shapes/text.safetensors is missing; check it out again or run `make base`",
    ):
        assert part in found
    (folder / "policy.safetensors").write_bytes((folder / "policy.safetensors").read_bytes()[:-8])
    assert any("policy.safetensors has" in line for line in problems())


def test_a_base_that_is_not_what_its_name_says_is_named(project: Path) -> None:
    official = Official(project)
    official.convert(text=write_t5(project / "t5"), to=project / "models/llamagen-xl-256")
    write_params(lambda data: data["backbone"].update(name="llamagen", base="models/llamagen-xl-256"))
    where, fix = "backbone.base: models/llamagen-xl-256: ", "; convert the published model to models/llamagen-xl-256, "
    sizes = ("8 pixels, llamagen-xl-256 has 256", "16 tokens", "2 layers", "32 wide")
    assert len(found := problems()) == len(sizes)
    assert all(line.startswith(where + size) and fix in line for line, size in zip(found, sizes, strict=True))


def test_converted_bases_fit(tmp_path: Path) -> None:
    official = Official(tmp_path)
    official.convert(text=write_t5(tmp_path / "t5"))
    sizes, found = read_base("llamagen", official.to)
    assert found == [] and sizes.length == 16 and sizes.image_size == 8
    cli.main(["convert", "janus", str(tiny_janus.save(tmp_path / "hub")), "--to", str(tmp_path / "janus")])
    sizes, found = read_base("janus", tmp_path / "janus")
    assert found == [] and sizes.text_bytes(2) == 9 * sizes.text_rows and sizes.frozen == tiny_janus.VOCABULARY * 32
    with pytest.raises(RankEError, match=r"format 'janus', not 'llamagen-t2i'; run `rank-e convert llamagen`"):
        read_base("llamagen", tmp_path / "janus")


def test_a_llamagen_base_without_its_text_encoder_is_named(project: Path) -> None:
    official = Official(project)
    official.convert()
    write_params(lambda data: data["backbone"].update(name="llamagen", base=str(official.to)))
    assert any("names no text encoder" in line for line in problems())
    shutil.rmtree(official.to)
    official.convert(text=write_t5(project / "t5"))
    cli.main(["validate"])
    for name in ("config.json", "model.safetensors", "spiece.model"):
        (project / "t5" / name).unlink()
    lacks = [line.partition(" holds no ")[2].partition(" ")[0] for line in problems()]
    assert lacks == ["config", "weights", "tokenizer"]


def test_a_gpu_that_is_not_there_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_params(lambda data: data["runtime"].update(device="cuda:1"))
    assert problems() == ["runtime.device = cuda:1: there is no such device here; use cpu or another machine"]


def test_too_little_disk_and_memory_are_said_with_what_is_there(project: Path) -> None:
    params = load()
    rich = Machine(disk=10**9, memory=10**9, device=10**9, threads=THREADS)
    need = Memory(device=4e8, host=4e8)
    assert room_problems(params, rich, 10**8, need, jobs=2) == []
    poor = replace(rich, disk=10**7, memory=10**8, device=10**8)
    disk, host, device = room_problems(params, poor, 10**8, need, jobs=1)
    assert disk.startswith("disk: the run needs 100.0 MB more") or "0.1 GB" in disk
    assert host.startswith("main memory") and device.startswith("memory of cpu")
    assert any("--jobs 1" in line for line in room_problems(params, poor, 0, need, jobs=2))


def test_too_few_processes_are_said_with_how_many_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert startable() == THREADS
    before, start = threading.active_count(), threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if threading.active_count() >= before + 5:
            raise RuntimeError("can't start new thread")  # Python's words at a user's or a container's limit
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert startable() == 5 and threading.active_count() == before
    machine = Machine(disk=10**9, memory=10**9, device=None, threads=5)
    (line,) = room_problems(load(), machine, 0, Memory(device=0, host=0), jobs=2)
    assert line.startswith("processes: a run takes 64 threads, 5 can be started here; raise `ulimit -u`")


def test_a_full_disk_stops_a_run_before_it_begins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = this_machine(load())
    monkeypatch.setattr(validate, "this_machine", lambda params: replace(there, disk=1))
    with pytest.raises(SystemExit, match="disk: the run needs"):
        cli.main(["run", "--no-track"])


def test_room_is_checked_before_a_published_base_is_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        validate, "this_machine", lambda params: Machine(disk=10**9, memory=10**12, device=0, threads=THREADS)
    )
    write_params(lambda data: data["backbone"].update(name="llamagen", base="models/llamagen-xl-256"))
    found = problems()
    assert found[0].startswith("backbone.base: models/llamagen-xl-256/base.json does not exist")
    assert found[1].startswith("disk: the run needs") and len(found) == 2


def test_the_benchmarks_files_are_those_that_its_reader_wants() -> None:
    assert named.STYLES == STYLES


def test_a_damaged_header_is_one_line(tmp_path: Path) -> None:
    for name, content in (("short", b"abc"), ("other", b"\xff" * 64), ("list", (2).to_bytes(8, "little") + b"[]")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(RankEError, match="truncated or not safetensors"):
            read_header(path)
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(RankEError, match=r"pointer\.safetensors is a Git LFS pointer, .* `git lfs pull`"):
        read_header(tmp_path / "pointer.safetensors")
    with pytest.raises(RankEError, match="cannot be read"):
        read_header(tmp_path / "nothing.safetensors")
