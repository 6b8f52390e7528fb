"""What a stage is made of: all that it imports, what params.yaml makes it import, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import pytest
import yaml

from rank_e.config import load
from rank_e.config.profiles import resolve
from rank_e.errors import RankEError
from stages.code import code_lists
from stages.runtime.code_list import OUTSIDE, imported_by_name
from stages.runtime.imports import Sources
from stages.runtime.process import REFUSED
from stages.runtime.stage import ARGUMENTS

ROOT = Path(__file__).parents[2]
EVALUATED = {"reference", "baseline", "sft_evaluation", "evaluation", "factorial"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the project's code and a module of the user's own."""
    for name in ("rank_e", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(resolve(ROOT / "profiles/tiny.yaml"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/rewards.py").write_text("import torch\n\ndef sharp(folder, device):\n    from . import filters\n")
    (tmp_path / "mine/filters.py").write_text("EDGE = 1.0\n")
    return tmp_path


def change(project: Path, **sections: dict[str, Any]) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    for name, values in sections.items():
        params[name] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def watch(project: Path, path: str) -> None:
    """Add a path to the deps of stage code, as a user would."""
    text = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(text.replace("      - stages\n", f"      - stages\n      - {path}\n"))


def users(project: Path, path: str) -> set[str]:
    """The stages that a file is part of."""
    return {name for name, files in code_lists(project, load(project / "params.yaml")).items() if path in files}


def test_a_stage_is_all_that_it_imports() -> None:
    params = load()
    named, found = imported_by_name(params), code_lists(ROOT, params)
    assert found.keys() == ARGUMENTS.keys() - {"code"}
    for name, manifest in found.items():
        # Python's own: reads byte code; libraries lie outside its path.
        finder = ModuleFinder([str(ROOT)], excludes=[path.removesuffix(".py").replace("/", ".") for path in OUTSIDE])
        finder.import_hook("stages.report.__main__" if name == "report" else f"stages.{name}")
        for loader, modules in named.items():
            if loader.removesuffix(".py").removesuffix("/__init__").replace("/", ".") in finder.modules:
                for module in modules:
                    finder.import_hook(module)
        files = {module.__file__ for module in finder.modules.values() if module.__file__}
        assert manifest.keys() == {str(Path(file).relative_to(ROOT)) for file in files}, name


@pytest.mark.parametrize("name", ["decoder", "evaluation"])
def test_a_stage_imports_nothing_at_run_time_that_was_not_found(name: str) -> None:
    """The stage, its backbone and its plugins in a process of their own: what it has loaded then."""
    found, named = code_lists(ROOT, load())[name], imported_by_name(load())
    modules = [f"stages.{name}", *(module for loader in named if loader in found for module in named[loader])]
    script = f"import sys, {', '.join(modules)}\nprint(*(getattr(m, '__file__', '') for m in sys.modules.values()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    own = {
        file.removeprefix(f"{ROOT}/")
        for file in ran.stdout.split()
        if file.startswith((f"{ROOT}/rank_e/", f"{ROOT}/stages/"))
    }
    assert len(own) > 40
    assert own - OUTSIDE <= found.keys()


def test_what_reads_params_begins_a_stage_or_resumes_it_is_part_of_every_stage() -> None:
    found = code_lists(ROOT, load())
    for path in ("rank_e/config/loading.py", "stages/runtime/process.py", "stages/runtime/state.py"):
        assert all(path in files for files in found.values()), path
    assert {"stages/report/__main__.py", "stages/report/page.py"} <= found["report"].keys()


def test_every_loader_by_name_is_known() -> None:
    """Who imports what params.yaml names; the others that use import_module name a library."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "rank_e").rglob("*.py")}
    loaders = {path for path, text in texts.items() if "call_factory" in text or "import_module" in text}
    libraries = {"rank_e/backbones/llamagen/text.py", "rank_e/io/torchvision_ops.py"}
    assert loaders - libraries - {"rank_e/io/plugins.py"} == imported_by_name(load()).keys()


def test_a_backbone_is_part_of_the_stages_only_where_params_name_it(project: Path) -> None:
    assert users(ROOT, "rank_e/shapes/backbone.py") == ARGUMENTS.keys() - {"code", "report"}
    change(project, backbone={"name": "janus"})
    assert users(project, "rank_e/backbones/janus/backbone.py") == ARGUMENTS.keys() - {"code", "report"}
    assert users(project, "rank_e/backbones/llamagen/backbone.py") == set()
    change(project, backbone={"name": "jonas"})
    with pytest.raises(RankEError, match=r"backbone.name: unknown backbone 'jonas'"):
        users(project, "rank_e/backbones/janus/backbone.py")


def test_a_module_of_ones_own_is_part_of_the_stages_that_load_it(project: Path) -> None:
    watch(project, "mine")
    assert users(project, "mine/rewards.py") == set()
    reward = {"rewards": {"sharp": {"kind": "mine.rewards:sharp", "weight": 1.0, "normalise": "none"}}}
    change(project, ranking=reward)
    assert users(project, "mine/rewards.py") == users(project, "mine/filters.py") == EVALUATED | {"ranking", "decoder"}


def test_a_dataset_of_ones_own_is_part_of_the_stages_that_read_data(project: Path) -> None:
    watch(project, "mine")
    change(project, data={"training": {"kind": "mine.rewards:images", "folder": "images", "shards": 3}})
    readers = EVALUATED | {"sft", "prompts", "decoder"}
    assert users(project, "mine/rewards.py") == users(project, "mine/filters.py") == readers


def test_a_judge_of_ones_own_leaves_the_training_alone(project: Path) -> None:
    watch(project, "mine/rewards.py\n      - mine/filters.py")
    change(project, evaluation={"scores": {"sharp": {"kind": "mine.rewards:sharp"}}, "matched": None})
    assert users(project, "mine/filters.py") == EVALUATED
    prompts = {"kind": "prompts", "file": "p", "column": None, "category": None, "prompts": 0, "samples_per_prompt": 1}
    benchmark = prompts | {"scores": {"sharp": {"kind": "mine.rewards:sharp"}}}
    change(project, evaluation={"scores": {}, "benchmarks": {"other": benchmark}})
    assert users(project, "mine/filters.py") == EVALUATED


def test_an_arms_own_module_counts_too(project: Path) -> None:
    watch(project, "mine")
    plain: dict[str, Any] = {"rollouts": {}, "ranking": {}, "policy": {}, "decoder": {}}
    own = {"kind": "mine.rewards:sharp"}
    change(project, arms={"coevolved": plain | {"decoder": {"perceptual": own}}})
    assert users(project, "mine/rewards.py") == {"decoder"}
    reward = {"rewards": {"sharp": own | {"weight": 1.0, "normalise": "none"}}}
    change(project, arms={"coevolved": plain | {"ranking": reward}})
    assert users(project, "mine/rewards.py") >= {"ranking", "decoder"}


def test_a_module_whose_change_nobody_would_see_is_an_error(project: Path) -> None:
    change(project, evaluation={"scores": {"sharp": {"kind": "mine.rewards:sharp"}}, "matched": None})
    watch(project, "mine/rewards.py")
    done = stage(project)
    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert done.stderr == (
        "code: mine/filters.py: its changes would go unseen; add it to the deps of the stage `code` in dvc.yaml\n"
    )
    assert not (project / "artifacts/code/ranking.json").exists()


def stage(project: Path, path: Path | str = "") -> subprocess.CompletedProcess[str]:
    """The stage as DVC calls it, with one more place to import from."""
    command, environment = [sys.executable, "-m", "stages", "code"], {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def test_the_stage_writes_the_same_bytes_again_and_needs_no_torch(project: Path) -> None:
    (project / "path").mkdir()
    (project / "path/torch.py").write_text("raise SystemExit('torch was imported')")
    folder = project / "artifacts/code"
    written = []
    for _ in range(2):
        done = stage(project, project / "path")
        assert done.returncode == 0, done.stderr
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
        (folder / ".policy.json.tmp-new").write_text("cut off")  # as a kill would leave it
    assert written[0] == written[1]
    assert written[0].keys() == {f"{name}.json" for name in ARGUMENTS if name != "code"}
    assert json.loads(written[0]["policy.json"]) == code_lists(ROOT, load(project / "params.yaml"))["policy"]
    assert (project / ".rank-e/usage/code.json").exists()


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    for path, text in {
        "top.py": "import a.b.c as c, json\n\ndef late():\n    from d import e, value\n",
        "a/__init__.py": "",
        "a/b/__init__.py": "from ..f import g\n",
        "a/b/c.py": "import top\n",  # a circle
        "a/f/__init__.py": "from . import h\n",
        "a/f/g.py": "",
        "a/f/h.py": "class H:\n    import loader\n",
        "a/unused.py": "",
        "d/__init__.py": "value = 1\n",
        "d/e.py": "",
        "loader.py": "import importlib\n",
        "named.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    everything = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")}
    assert Sources(tmp_path, {"loader.py": ["named"]}).closure("top") == everything - {"a/unused.py"}
    assert Sources(tmp_path, {}).closure("a.unused") == {"a/__init__.py", "a/unused.py"}
    assert Sources(tmp_path, {"a/unused.py": ["torch.nn"]}).closure("a.unused") == {"a/__init__.py", "a/unused.py"}
    (tmp_path / "d/e.py").write_text("def broken(:\n")
    with pytest.raises(RankEError, match=r"d/e.py is not Python: .*line 1"):
        Sources(tmp_path, {}).closure("top")
