"""A project of DVC whose stages write artifacts of a run in no time: weights that depend on those before them.

A stage for which there is a file such as `wait-policy` removes it and stays in its work for good: it is to be killed.
"""

import shutil
from pathlib import Path

from ruamel.yaml import YAML

from tests.helpers.fake_artifacts import write_params
from tests.helpers.project import ROOT, dvc

MAKE = """
import hashlib, sys, time
from pathlib import Path
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import read_artifact

kind, seed, arm, number = sys.argv[1], 0, sys.argv[5], int(sys.argv[7])
place = f"artifacts/{arm}/s0"
Path("ran").open("a").write(f"{kind} {number}\\n")

def stuff(*given):
    return hashlib.sha256("".join(given).encode()).hexdigest() * 100

def content(number, kind, name):
    artifact = read_artifact(f"{place}/r{number}/{kind}", kind)
    return artifact._file(f"{name}.safetensors").read_text()

def write(number, kind, inputs, **files):
    paths = {name: f"{place}/{path}" for name, path in inputs.items()}
    with ArtifactWriter(f"{place}/r{number}/{kind}", kind, seed=seed, deterministic=True, inputs=paths) as out:
        out.json("metrics", {"loss": 1 / (1 + number)})
        if Path(f"wait-{kind}").exists():
            Path(f"wait-{kind}").unlink()
            time.sleep(120)
        for name, text in files.items():
            out.file(f"{name}.safetensors").write_text(text)

def weights(kind, number, optimizer, inputs, *given):
    more = {"optimizer": stuff("optimizer", *given)} if optimizer else {}
    write(number, kind, inputs, online=stuff("online", *given), ema=stuff("ema", *given), **more)

if kind == "start":
    for name in ("policy", "decoder"):
        weights(name, 0, False, {}, name)
elif kind == "rollouts":
    write(number, kind, {"policy": f"r{number - 1}/policy"}, rollouts=content(number - 1, "policy", "online") + kind)
elif kind == "policy":
    given = [content(number, "rollouts", "rollouts"), content(number - 1, "policy", "online")]
    given += [content(number - 1, "policy", "optimizer")] if number > 1 else []
    weights(kind, number, True, {"rollouts": f"r{number}/rollouts", "previous": f"r{number - 1}/policy"}, *given)
elif kind == "decoder":
    weights(kind, number, True, {"previous": f"r{number - 1}/decoder"}, content(number - 1, kind, "online"), kind)
elif kind == "evaluation":
    text = content(number, "policy", "ema") + content(number, "decoder", "ema")
    with ArtifactWriter(f"{place}/r{number}/{kind}", kind, seed=seed, deterministic=True) as out:
        out.json("metrics", {"reward": {"value": abs(number - 2.2)}, "fd": {"value": abs(number - 3.2)}})
        better = {"reward": "higher", "fd": "lower", "entropy": "nearer"}
        out.json("descriptions", [{"key": key, "better": way} for key, way in better.items()])
"""
PIPELINE = """
stages:
  start:
    matrix: {arm: [coevolved]}
    cmd: python make.py start --seed 0 --arm ${item.arm} --round 0
    deps: [make.py]
    outs: ["artifacts/${item.arm}/s0/r0/policy", "artifacts/${item.arm}/s0/r0/decoder"]
  rollouts:
    matrix: &cells {arm: [coevolved], round: "${rounds}"}
    cmd: python make.py rollouts --seed 0 --arm ${item.arm} --round ${item.round.id}
    deps: [make.py, "artifacts/${item.arm}/s0/r${item.round.prev}/policy/manifest.json"]
    outs: ["artifacts/${item.arm}/s0/r${item.round.id}/rollouts"]
  policy:
    matrix: *cells
    cmd: python make.py policy --seed 0 --arm ${item.arm} --round ${item.round.id}
    deps:
      - make.py
      - artifacts/${item.arm}/s0/r${item.round.id}/rollouts/manifest.json
      - artifacts/${item.arm}/s0/r${item.round.prev}/policy/manifest.json
    outs: ["artifacts/${item.arm}/s0/r${item.round.id}/policy"]
  decoder:
    matrix: *cells
    cmd: python make.py decoder --seed 0 --arm ${item.arm} --round ${item.round.id}
    deps: [make.py, "artifacts/${item.arm}/s0/r${item.round.prev}/decoder/manifest.json"]
    outs: ["artifacts/${item.arm}/s0/r${item.round.id}/decoder"]
  evaluation:
    matrix: {arm: [coevolved], round: "${evaluated}"}
    cmd: python make.py evaluation --seed 0 --arm ${item.arm} --round ${item.round}
    deps:
      - make.py
      - artifacts/${item.arm}/s0/r${item.round}/policy/manifest.json
      - artifacts/${item.arm}/s0/r${item.round}/decoder/manifest.json
    outs: ["artifacts/${item.arm}/s0/r${item.round}/evaluation"]
  report:
    cmd: python -c "from pathlib import Path; Path('report').write_text('x')"
    deps: [artifacts]
    outs: [report]
"""


def write_rounds_project(folder: Path, rounds: int, evaluated: list[int]) -> None:
    """The project in an empty folder, with DVC, and nothing computed yet."""
    (folder / "make.py").write_text(MAKE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    set_rounds(folder, rounds, evaluated)
    for name in ("stages", "rank_e", "assets"):
        (folder / name).symlink_to(ROOT / name)
    dvc(folder, "init", "--no-scm", "--quiet")
    for name in (".dvcignore", ".dvc/config"):
        shutil.copy(ROOT / name, folder / name)
    dvc(folder, "config", "core.no_scm", "true")


def set_rounds(folder: Path, rounds: int, evaluated: list[int]) -> None:
    """Its params.yaml with so many rounds."""
    write_params(folder, seeds=[0], rounds=rounds)
    path = folder / "params.yaml"
    params = YAML(typ="safe").load(path.read_text())
    YAML().dump(params | {"evaluated": evaluated}, path)
