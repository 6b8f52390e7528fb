"""The DVC graph: the grid expands, and a change re-runs what reads it and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.dependency.param import ParamsDependency
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import Stage
from dvc.utils.serialize import dump_yaml, load_yaml
from networkx import descendants

from pipeline.graph import load_graph, make_groups
from rank_e.config.profiles import load_profile, resolve
from stages.runtime.recorded import dependencies, sections
from stages.runtime.stage import ARGUMENTS, parse_arguments

ROOT = Path(__file__).parents[2]
STAGES = ("rollouts", "ranking", "policy", "decoder", "evaluation", "factorial")
EVALUATED = {"reference", "baseline", "sft_evaluation", "evaluation", "factorial"}

# Stands in for every stage but `code`: its outs are a hash of the files and params that dvc.yaml lets it read.
FAKE = """
import hashlib, json, os, pathlib, sys
from stages.runtime.process import run_module
if sys.argv[1] == "code":
    run_module("code", [])
    sys.exit()
deps, params, outs = json.loads(pathlib.Path("plan.json").read_text())[os.environ["DVC_STAGE"]]
paths = [path for dep in map(pathlib.Path, deps) for path in (
    [dep] if dep.is_file() else sorted([*dep.rglob("value"), *dep.rglob("manifest.json")])
)]
value = hashlib.sha256(repr([params, [(str(path), path.read_text()) for path in paths]]).encode()).hexdigest()
for out in outs:
    pathlib.Path(out).mkdir(parents=True)
    pathlib.Path(out, "manifest.json").write_text(value)
"""


def project(folder: Path, profile: str) -> Path:
    """A copy of what DVC looks at, with a profile's params and without history."""
    for name in ("rank_e", "stages", "base"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    config = (ROOT / ".dvc/config").read_text()
    (folder / ".dvc/config").write_text(config.replace("[core]", "[core]\n    no_scm = true"))
    (folder / "params.yaml").write_text(resolve(ROOT / f"profiles/{profile}.yaml"))
    return folder


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repo]:
    return {name: Repo(str(project(tmp_path_factory.mktemp(name), name))) for name in ("shapes", "tiny")}


def pipeline(repo: Repo) -> dict[str, Stage]:
    """The stages of the main dvc.yaml by name; base/dvc.yaml has its own."""
    main = Path(repo.root_dir) / "dvc.yaml"
    return {stage.name: stage for stage in repo.index.stages if Path(stage.path) == main}


def relative(repo: Repo, items: list[Output]) -> set[str]:
    """The paths of deps or outs that are files, relative to the project."""
    return {str(Path(item.fs_path).relative_to(repo.root_dir)) for item in items}


def params_of(repo: Repo, stage: str) -> set[str]:
    return {key for dep in pipeline(repo)[stage].params for key in dep.params}


def readers(repo: Repo, key: str) -> set[str]:
    """The stages that read a param (or a part of it, or the whole that it is a part of)."""

    def touches(other: str) -> bool:
        return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")

    names = set(pipeline(repo)) - {"report"}
    return {name.split("@")[0] for name in names if any(touches(other) for other in params_of(repo, name))}


def test_both_profiles_expand_to_the_whole_grid(graphs: dict[str, Repo]) -> None:
    for name in ("shapes", "tiny"):
        params = load_profile(ROOT / f"profiles/{name}.yaml")
        seeds, rounds, evaluations = (len(item) for item in (params.seeds, params.rounds, params.evaluated))
        stages = pipeline(graphs[name])
        trained, judged = len(STAGES) - 2, 2
        cells = 2 * seeds * (rounds * trained + evaluations * judged)
        assert len(stages) == 4 + seeds * rounds + 2 * seeds + 2 * seeds + cells
        assert set(stages.values()) <= set(graphs[name].index.graph)  # built: no cycle, no two outs in one place
        outs = relative(graphs[name], graphs[name].index.outs)
        for arm in ("frozen", "coevolved"):
            for stage in STAGES:
                assert f"artifacts/{arm}/s{seeds - 1}/r{rounds}/{stage}" in outs
        last = stages[f"policy@coevolved-{seeds - 1}-round{rounds - 1}"]
        assert last.cmd == f"exec sh stages/python -m stages policy --arm coevolved --seed {seeds - 1} --round {rounds}"
        read = relative(graphs[name], last.deps)
        assert f"artifacts/coevolved/s{seeds - 1}/r{rounds - 1}/policy/manifest.json" in read
        assert f"artifacts/coevolved/s{seeds - 1}/r0/policy/manifest.json" in read
        start = relative(graphs[name], stages[f"start@frozen-{seeds - 1}"].deps)
        assert f"artifacts/sft/s{seeds - 1}/policy/manifest.json" in start


def test_an_artifact_is_depended_on_by_its_manifest(graphs: dict[str, Repo]) -> None:
    # It holds the hash of every file: what `rank-e gc` removes beside it makes nothing stale.
    repo = graphs["tiny"]
    outs = relative(repo, repo.index.outs)
    deps = {
        dep for stage in pipeline(repo).values() for dep in relative(repo, stage.deps) if dep.startswith("artifacts/")
    }
    others = {dep for dep in deps if not dep.startswith("artifacts/code/")}
    assert others and all(Path(dep).name == "manifest.json" and str(Path(dep).parent) in outs for dep in others)


def test_no_command_needs_a_shell_between_dvc_and_the_stage(graphs: dict[str, Repo]) -> None:
    for stage in pipeline(graphs["shapes"]).values():
        # Both shells put Python in their own place: it is DVC's child, and dies with it.
        assert set(stage.cmd) <= set("abcdefghijklmnopqrstuvwxyz_0123456789.-/ "), stage.cmd
        assert stage.cmd.startswith("exec sh stages/python -m stages ")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("decoder.steps", {"decoder"}),
        ("arms.frozen.decoder", {"code", "decoder"}),
        ("policy.learning_rate", {"policy"}),
        ("rollouts.guidance", {"rollouts", "policy"}),
        ("ranking.temperature", {"ranking"}),
        ("ranking.rewards", {"code", "ranking", "decoder", *EVALUATED}),
        ("data.training", {"code", "sft", "prompts", "decoder"}),
        ("sft.learning_rate", {"sft"}),
        ("sft.train", {"sft", "sft_evaluation"}),
        ("data.held_out", {"code", *EVALUATED}),
        ("weights.training", {"ranking", "decoder", *EVALUATED}),
        ("weights.evaluation", EVALUATED),
        ("prompts.per_round", {"prompts"}),
        ("factorial.arms", {"factorial"}),
        ("evaluation.bootstrap", EVALUATED),
        ("evaluation.scores", {"code", *EVALUATED}),
        ("backbone.name", set(ARGUMENTS) - {"report"}),
    ],
)
def test_a_param_is_read_where_it_acts(graphs: dict[str, Repo], key: str, expected: set[str]) -> None:
    assert readers(graphs["shapes"], key) == expected


def test_a_stage_knows_what_dvc_records_of_it(graphs: dict[str, Repo]) -> None:
    for profile, repo in graphs.items():
        params = load_profile(ROOT / f"profiles/{profile}.yaml").model_dump(mode="json")
        for address, stage in pipeline(repo).items():
            name, *words = stage.cmd.partition("-m stages ")[2].split()
            given = parse_arguments(name, words)
            arm, seed, number = given.get("arm", ""), given.get("seed", 0), given.get("round", 0)
            paths = dependencies(name, params, arm, seed, number)
            recorded = relative(repo, [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)])
            assert {str(path) for path in paths} == recorded and len(set(paths)) == len(paths), address
            keys = set(sections(name, params, arm))
            assert keys == (params_of(repo, address) or params.keys()), address


def test_an_arm_reads_its_own_overrides_only(graphs: dict[str, Repo]) -> None:
    for arm, other in (("frozen", "coevolved"), ("coevolved", "frozen")):
        keys = params_of(graphs["tiny"], f"decoder@{arm}-0-round1")
        assert f"arms.{arm}.decoder" in keys
        assert not any(key.startswith(f"arms.{other}") for key in keys)


def test_a_stage_depends_on_its_own_code_and_no_source_file(graphs: dict[str, Repo]) -> None:
    for name, stage in pipeline(graphs["tiny"]).items():
        kind, deps = name.split("@")[0], relative(graphs["tiny"], stage.deps)
        code = {dep for dep in deps if dep.startswith(("stages", "rank_e", "artifacts/code/"))}
        if kind == "code":
            assert code == {"stages", "rank_e"}
        elif kind == "report":
            assert deps == {"artifacts", "params.yaml"}
        else:
            # The embedded world is its own data.
            assert code - {"rank_e/shapes"} == {f"artifacts/code/{kind}.json"}, name


def test_the_report_waits_for_everything_but_the_training_of_the_base(graphs: dict[str, Repo]) -> None:
    # It reads the whole of artifacts/: an out of base/dvc.yaml in there would make every run train the base.
    repo = graphs["tiny"]
    stages = pipeline(repo)
    above = descendants(repo.index.graph, stages["report"])  # edges point from a stage to what it reads
    assert {stage.name for stage in above} == set(stages) - {"report"}


def test_the_flow_finds_the_code_before_anything_else() -> None:
    first, *others = make_groups(load_graph(ROOT))
    assert first.name == "code" and not first.waits
    assert all("code" in group.waits for group in others)


def repro(folder: Path, *targets: str) -> set[str]:
    """Run `dvc repro` with the fake stages and return those that ran."""
    repo = Repo(str(folder))
    plan = {
        name: [
            sorted(relative(repo, stage.deps)),
            [dep.read_params() for dep in stage.params],
            sorted(relative(repo, stage.outs)),
        ]
        for name, stage in pipeline(repo).items()
    }
    (folder / "plan.json").write_text(json.dumps(plan, default=str))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", "repro", *targets]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
    return {line.split("'")[1] for line in lines}


@pytest.mark.slow
def test_a_change_runs_again_only_what_depends_on_it(tmp_path: Path) -> None:
    """Real `dvc repro` over the tiny grid, each stage replaced by one that hashes its inputs and params."""
    folder = project(tmp_path, "tiny")
    (folder / "stages/__main__.py").write_text(FAKE)
    (folder / "assets/shapes").mkdir(parents=True)
    (folder / "assets/shapes/value").write_text("base")
    everything = repro(folder)
    assert len(everything) == 4 + 2 + 2 + 2 + 4 * len(STAGES)
    assert repro(folder) == set()

    def edited(*paths: str) -> set[str]:
        for path in paths:
            (folder / path).write_text((folder / path).read_text() + "# edited\n")
        return repro(folder)

    assert edited("rank_e/config/messages.py", "stages/runtime/warm.py") == {"code"}
    loading = (folder / "rank_e/config/loading.py").read_text()
    (folder / "rank_e/config/loading.py").write_text(loading + "# edited\n")
    assert repro(folder, "code") == {"code"}
    found = {name.rpartition(":")[2] for name in Repo(str(folder)).status() if "base/dvc.yaml" not in name}
    assert found == everything - {"code"}  # it decides the params of every stage
    (folder / "rank_e/config/loading.py").write_text(loading)
    assert repro(folder) <= {"code"}
    readers = {name for name in everything if name.split("@")[0] in EVALUATED}
    assert edited("rank_e/evaluation/suite.py") == readers | {"code", "report"}
    assert edited("stages/report/style.py") == {"code", "report"}

    # Round 1's rollouts, ranking and policy stay, and so does the other arm; round 2 ranks the new images.
    changed = load_yaml(folder / "params.yaml")
    changed["arms"]["coevolved"]["decoder"]["adversarial_ratio"] = 0.5
    dump_yaml(folder / "params.yaml", changed)
    first = {"decoder@coevolved-0-round0", "evaluation@coevolved-0-1"}
    second = {f"{name}@coevolved-0-round1" for name in ("ranking", "policy", "decoder")} | {"evaluation@coevolved-0-2"}
    assert repro(folder) == first | second | {"code", "factorial@coevolved-0-1", "factorial@coevolved-0-2", "report"}

    changed["rounds"].append({"id": 3, "prev": 2})
    changed["evaluated"].append(3)
    changed["factorial"]["round"] = 3
    dump_yaml(folder / "params.yaml", changed)
    place = {name: "3" if name in EVALUATED else "round2" for name in STAGES}
    third = {f"{name}@{arm}-0-{place[name]}" for arm in ("frozen", "coevolved") for name in STAGES}
    assert repro(folder) == third | {"prompts@0-round2", "report"}


def test_dvc_finds_the_stages_python_in_a_fresh_shell(tmp_path: Path) -> None:
    folder = project(tmp_path, "tiny")
    (folder / "stages/__main__.py").write_text("import os, sys\nprint('here', sys.prefix, os.getppid())\nsys.exit(3)\n")
    (folder / ".venv").symlink_to(sys.prefix)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}
    command = [".venv/bin/dvc", "repro", "code"]
    process = subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=-1, stderr=-2)
    said = process.communicate()[0]
    assert f"here {folder / '.venv'} {process.pid}\n" in said and "exited with 3" in said, said


@pytest.mark.parametrize("given", [True, False])
def test_a_python_that_is_named_goes_before_the_projects_own(tmp_path: Path, given: bool) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, path in (("own", tmp_path / ".venv/bin/python"), ("named", tmp_path / "named")):
        path.write_text(f"#!/bin/sh\necho {name} $@\n")
        path.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin"} | ({"RANK_E_PYTHON": str(tmp_path / "named")} if given else {})
    command = ["sh", str(ROOT / "stages/python"), "-m", "stages", "code"]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert said == f"{'named' if given else 'own'} -m stages code\n"
