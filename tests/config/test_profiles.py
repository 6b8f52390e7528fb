"""Profiles: what extends another, the whole file that is written, and DVC's own writer over it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml
from ruamel.yaml import YAML

from rank_e.config import ConfigError, load
from rank_e.config.profiles import load_profile, resolve

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
WHOLE = """# The head
schema: 2

first:               # about first
  kind: a
  one: 1.0e-4        # small
  # above two
  two: [1, 2]
  texts:
    - "x:y"
    - "*.tar"

lists: [{id: 1, prev: 0}, {id: 2, prev: 1}]   # both
arms:
  one: {}
  two: {keep: true}
"""


def values(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return loaded


def profile(folder: Path, **texts: str) -> str:
    """The whole of the last profile of `texts`; `whole` lies beside them."""
    for name, text in {"whole": WHOLE, **texts}.items():
        (folder / f"{name}.yaml").write_text(text)
    return resolve(folder / f"{list(texts)[-1]}.yaml")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_valid(path: Path) -> None:
    params = load_profile(path)
    assert params.factorial.round == params.last_round
    assert not params.arm("frozen").decoder.train
    assert params.runtime.deterministic == (params.backbone.name == "shapes")
    assert params.arm("coevolved").decoder == params.decoder


def test_params_yaml_is_the_shapes_profile() -> None:
    assert (ROOT / "params.yaml").read_text() == resolve(ROOT / "profiles/shapes.yaml")


def test_a_profile_holds_what_differs_and_the_whole_is_written_in_block_style(tmp_path: Path) -> None:
    text = profile(
        tmp_path, other="# Mine\nextends: whole\nfirst:\n  one: 2.0e-5   # tiny\n  three: null\narms: {two: null}\n"
    )
    assert (
        text
        == """# Mine
schema: 2

first:               # about first
  kind: a
  one: 2.0e-5   # tiny
  # above two
  two:
  - 1
  - 2
  texts:
  - x:y
  - '*.tar'
  three: null

lists:                                        # both
- id: 1
  prev: 0
- id: 2
  prev: 1
arms:
  one: {}
"""
    )


def test_a_comment_goes_with_the_value_that_it_is_about(tmp_path: Path) -> None:
    text = profile(tmp_path, other="extends: whole\nfirst:\n  one: 3\n  two: []\n")
    assert text.startswith("# The head\n") and "  one: 3\n  two: []\n" in text
    assert "small" not in text and "above two" not in text and "# about first" in text


def test_texts_with_signs_of_comments_and_quotation_marks_stay(tmp_path: Path) -> None:
    lines = ["schema: 2", "", "texts:", "  a: it's#1   # one's own", "  b: 'c # d'   # \"e\"", f"  f: {'g h ' * 40}i"]
    assert profile(tmp_path, texts="\n".join([*lines, ""])).splitlines() == lines


def test_a_section_of_another_kind_is_put_in_whole_and_lists_are_replaced(tmp_path: Path) -> None:
    found = values(profile(tmp_path, other="extends: whole\nfirst: {kind: b, four: 4}\nlists: []\n"))
    assert found["first"] == {"kind": "b", "four": 4} and found["lists"] == []
    assert found["arms"] == {"one": {}, "two": {"keep": True}}


def test_profiles_extend_each_other_in_a_chain(tmp_path: Path) -> None:
    middle = "extends: whole\nfirst:\n  one: 1\nlists: [5]\n"
    found = values(profile(tmp_path, middle=middle, last="extends: middle\nfirst: {two: [7]}\n"))
    assert found["first"] == {"kind": "a", "one": 1, "two": [7], "texts": ["x:y", "*.tar"]} and found["lists"] == [5]
    assert "extends" not in found


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "extends: b\n", "b": "extends: a\n"}, r"b\.yaml: extends itself: b extends a extends b; remove one"),
        ({"a": "extends: a\n"}, "extends itself: a extends a"),
        ({"a": "extends: none\n"}, r"a\.yaml: extends none, but .*none\.yaml does not exist: profiles are a, whole"),
        ({"a": "extends: whole\narms: {three: null}\n"}, r"a\.yaml: arms\.three = null: whole has none to take out"),
        ({"a": "extends: ../shapes\n"}, r"a\.yaml: extends = \"\.\./shapes\": must be the name of a profile"),
        ({"a": "extends: [whole]\n"}, r"a\.yaml: extends = \[\"whole\"\]: must be the name of a profile"),
        ({"a": "- 1\n"}, r"a\.yaml must be a mapping of sections"),
        ({"a": "a: [1\n"}, r"a\.yaml is not readable as YAML"),
    ],
)
def test_a_profile_that_cannot_be_resolved_is_one_line(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        profile(tmp_path, **texts)
    assert "\n" not in str(error.value)


def test_params_yaml_itself_must_be_whole(tmp_path: Path) -> None:
    shutil.copy(ROOT / "profiles/tiny.yaml", tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match=r"extends: DVC reads params\.yaml whole; .*`rank-e profile NAME`"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_dvcs_own_writer_changes_the_value_and_nothing_else(tmp_path: Path, path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(resolve(path))
    before = load_yaml(str(params))
    apply_overrides(params, ["decoder.lambda_reconstruction=0.25", "arms.frozen.decoder.train=false"])
    before["decoder"]["lambda_reconstruction"] = 0.25
    assert load_yaml(str(params)) == before  # by DVC's reader, which is another than ours
    assert load(params).decoder.lambda_reconstruction == 0.25
    # DVC leaves the place of a null empty
    wanted = resolve(path).replace("lambda_reconstruction: 1.0", "lambda_reconstruction: 0.25").replace(": null", ":")
    assert [" ".join(line.split()) for line in params.read_text().splitlines()] == [
        " ".join(line.split()) for line in wanted.splitlines()
    ]


@pytest.mark.slow
def test_dvc_exp_run_sets_a_param(tmp_path: Path) -> None:
    """The real command, in a repository of its own, up to the first stage."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def call(*command: str) -> None:
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)

    for name in ("rank_e", "stages", "assets"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    shutil.copy(ROOT / ".dvc/.gitignore", tmp_path / ".dvc/.gitignore")
    (tmp_path / "params.yaml").write_text(resolve(ROOT / "profiles/tiny.yaml"))
    call("git", "init", "-q")
    call("git", "add", "-A")
    call("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "all")
    stage = ("--single-item", "code")
    call(sys.executable, "-m", "dvc", "exp", "run", "-S", "decoder.lambda_consistency=0.25", *stage)
    assert load(tmp_path / "params.yaml").decoder.lambda_consistency == 0.25
    assert (tmp_path / "artifacts/code/decoder.json").is_file()
