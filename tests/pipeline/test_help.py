"""What the command line says of itself: the version, completion, examples that are right, and what was meant."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.help import EXAMPLES, completion
from rank_e.config import ConfigError, parse
from rank_e.config.profiles import load_profile, resolve
from rank_e.config.reading import read_values
from rank_e.errors import RankEError, nearest
from tests.helpers.project import ROOT


def said(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == status
    output = capsys.readouterr()
    return output.err if status else output.out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert said(["--version"], 0, capsys) == f"rank-e {version}\n"


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_stand_in_the_help_and_are_right(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = said(["--help"] if command == "rank-e" else [command, "--help"], 0, capsys)
    for example in EXAMPLES[command]:
        assert f"\n  {example}\n" in words
        inner = re.search(r"\$\((.*)\)", example)
        given = shlex.split(inner[1] if inner else example.partition(" > ")[0], comments=True)
        assert given[0] == "rank-e" and (command == "rank-e" or given[1] == command)
        cli.parser().parse_args(given[1:])


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["vaildate"], "validate"), (["convert", "llmagen"], "llamagen"), (["export", "--weights", "onlin"], "online")],
)
def test_a_wrong_choice_is_answered_by_the_nearest(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(arguments, 2, capsys).endswith(f"; did you mean {meant}?\n")


def test_what_is_like_nothing_gets_no_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert nearest("zzz", ["run", "serve"]) == "" and "did you mean" not in said(["zzz"], 2, capsys)


def test_keys_arms_profiles_and_backbones_too(tmp_path: Path) -> None:
    data = read_values(resolve(ROOT / "profiles/tiny.yaml"), "params.yaml")
    params = parse(data)
    data["policy"]["learning_rat"] = data["policy"].pop("learning_rate")
    data["arms"]["frozen"]["decoder"]["trian"] = False
    data["polciy"] = {}
    with pytest.raises(ConfigError) as wrong:
        parse(data)
    lines = {line.split(" = ")[0]: line for line in str(wrong.value).splitlines()}
    for key, meant in (
        ("policy.learning_rat", "learning_rate"),
        ("arms.frozen.decoder.trian", "train"),
        ("polciy", "policy"),
    ):
        assert lines[f"params.yaml: {key}"].endswith(f"; did you mean {meant}?")
    with pytest.raises(ConfigError, match=r"it has frozen, coevolved; did you mean frozen\?"):
        params.arm("forzen")
    with pytest.raises(ConfigError, match=r"profiles are .*; did you mean tiny\?"):
        load_profile(ROOT / "profiles/tinny.yaml")
    from rank_e.backbones import paths_of

    with pytest.raises(RankEError, match=r"janus, llamagen, shapes; did you mean janus\?"):
        paths_of("januss")


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(completion(cli.parser(), "bash"))
    ask = 'COMP_WORDS=({words} ""); COMP_CWORD={place}; COMP_LINE="{words} "; {name}; echo "${{COMPREPLY[*]}}"'
    name = re.search(r"complete .*-F (\S+) rank-e", script.read_text())
    assert name
    for words, expected in (("rank-e", {"run", "validate", "completion"}), ("rank-e completion", {"bash", "zsh"})):
        line = ask.format(words=words, place=len(words.split()), name=name[1])
        done = subprocess.run(["bash", "-c", f". {script}; {line}"], capture_output=True, text=True)
        assert expected <= set(done.stdout.split()), (words, done.stdout, done.stderr)
