"""The tutorial, block by block, in a copy of the project: files are written, commands run, Python executed.

What trains (`make tiny`, `rank-e run`) and what reads its artifacts is checked as a command line; in its place one
round's stages run at the end, with the reader's own arm, reward, data and backbone.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.project import ROOT

TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TUTORIAL, re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")
AFTER_TRAINING = ("run", "compare")
STAGES = ("sft", "prompts", "start", "rollouts", "ranking", "policy", "decoder")


def command(line: str) -> None:
    """One line of a bash block; the program `rank-e` is this process's own, which spares it DVC's import."""
    from pipeline import cli

    words = shlex.split(line, comments=True)
    if words[0] == "rank-e" and words[1] in AFTER_TRAINING:
        cli.parser().parse_args(words[1:])
    elif words[0] == "rank-e":
        cli.main(words[1:])
    else:
        text = f"make -n {line.removeprefix('make ')}" if words[0] == "make" else line
        subprocess.run(["bash", "-euc", text], check=True)
        importlib.reload(sys.modules["rank_e.backbones"])  # its registry may have got a line


def run_round(profile: str, names: tuple[str, ...]) -> None:
    from rank_e.config.profiles import load_profile
    from stages.runtime.stage import ARGUMENTS, make_stage

    params, coordinates = load_profile(profile), {"arm": "uniform", "seed": 0, "round": 1}
    for name in names:
        stage = make_stage(name, params, **{key: coordinates[key] for key in ARGUMENTS[name]})
        importlib.import_module(f"stages.{name}").run(stage)


def follow() -> None:
    """All blocks in their order, in the current folder; what the page says of a run without the backbone comes last."""
    from rank_e.errors import RankEError

    names: dict[str, Any] = {}
    for language, text in BLOCKS:
        if language == "bash":
            for line in text.replace("\\\n", "").splitlines():
                command(line)
        elif file := FILE.match(text):
            path = Path(file[1])
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        else:
            exec(text, names)  # noqa: S102 - the page's own lines
    run_round("params.yaml", STAGES)
    assert names["images"].shape == (2, 3, 48, 48) and names["scores"][1] > names["scores"][0]  # the second is blue
    assert abs(float(names["advantages"].mean())) < 1e-6 and abs(float(names["weights"].mean()) - 1) < 1e-6
    try:
        run_round("profiles/mine-data.yaml", ("sft", "prompts"))
    except RankEError as error:
        print(f"\n{error}")


def test_every_block_does_what_the_page_says(tmp_path: Path) -> None:
    for name in ("rank_e", "stages", "pipeline", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", "Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    for name, text in ((".dvc/config", "[core]\n    no_scm = true\n"), (".venv/bin/activate", "")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    binaries = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""), str(ROOT)))  # the copy comes first
    done = subprocess.run(
        [sys.executable, "-c", "from tests.docs.test_tutorial import follow; follow()"],
        cwd=tmp_path,
        env={**os.environ, "PATH": binaries, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("params.yaml: ") == TUTORIAL.count("\nrank-e validate\n")
    (quoted,) = re.findall(r"`(prompt 'a [^`]*)`", TUTORIAL)
    said, quoted = (
        " ".join(re.sub("navy|crimson|box|disc", "...", words).split())
        for words in (done.stdout.splitlines()[-1], quoted)
    )
    assert said.startswith(quoted)
    for place in ("policy", "decoder"):
        assert (tmp_path / f"artifacts/uniform/s0/r1/{place}/ema.safetensors").is_file()
    assert "reward_blueness" in json.loads((tmp_path / "artifacts/uniform/s0/r1/ranking/metrics.json").read_text())


def test_every_kind_of_block_is_there() -> None:
    languages = [language for language, _ in BLOCKS]
    assert {"bash", "python", "yaml"} == set(languages) and len(languages) == TUTORIAL.count("\n```") / 2
