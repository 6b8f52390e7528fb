"""Params files that are wrong in every way: read, or refused in one line a problem, within two seconds of one core."""

import os
import random
import time
from pathlib import Path

import pytest

from benchmarks.faults_params import mangled, outcome, systematic
from rank_e.config import ConfigError
from rank_e.config.loading import load, parse_text
from rank_e.config.profiles import load_profile, resolve

SHAPES = resolve(Path(__file__).parents[2] / "profiles/shapes.yaml")
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "".join(f"a{depth}: &a{depth} {{b: {f'*a{depth - 1}' if depth else 1}}}\n" for depth in range(99))


def refused(text: str) -> list[str]:
    """The lines that a params file is refused with, in time."""
    began = time.process_time()
    with pytest.raises(ConfigError) as error:
        parse_text(text)
    assert time.process_time() - began < 2
    return str(error.value).split("\n")


def change(before: str, after: str) -> str:
    assert SHAPES.count(before) == 1, before
    return SHAPES.replace(before, after)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (SHAPES + "1: 2\n", ["1 = 2: keys must be text; correct it, or put it in quotes"]),
        (
            change("sft:\n", "sft:\n  true: 1\n  null: 2\n"),
            [
                "sft.true = 1: keys must be text; correct it, or put it in quotes",
                "sft.null = 2: keys must be text; correct it, or put it in quotes",
            ],
        ),
        (
            change("per_round: 144", f"per_round: {'9' * 5000}"),
            [f'prompts.per_round = "{"9" * 76}...: must be a number of at most 300 digits, a date, or text in quotes'],
        ),
        (
            change("per_round: 144", f"per_round: {'9' * 150}"),
            [f"prompts.per_round = {'9' * 77}...: must be a whole number in [1, 10000000]"],
        ),
        (
            change("per_round: 144", "per_round: 2020-13-45"),
            ['prompts.per_round = "2020-13-45": must be a number of at most 300 digits, a date, or text in quotes'],
        ),
        (
            change("training: assets/shapes", r'training: "a\0b"'),
            [r'weights.training = "a\u0000b": must be text without control characters'],
        ),
        (
            change("training: assets/shapes", r'training: "\ud83d"'),
            [r'weights.training = "\ud83d": must be text without control characters'],
        ),
        (
            change("    decoder: {}", "    decoder: &d {perceptual: *d}"),
            ["arms.coevolved.decoder.perceptual: holds itself by an alias; write its value out"],
        ),
        ("x: &x [*x]\n" + SHAPES, ["x.0: holds itself by an alias; write its value out"]),
    ],
)  # fmt: skip
def test_each_problem_is_a_line_with_key_value_and_what_is_allowed(text: str, lines: list[str]) -> None:
    assert refused(text) == [f"params.yaml: {line}" for line in lines]


def test_all_problems_are_said_at_once() -> None:
    text = SHAPES.replace("sft:\n", "sft:\n  true: 1\n").replace("per_round: 144", "per_round: 0")
    text = text.replace("threads: 1 ", f"threads: {'9' * 5000} ").replace("training: assets/shapes", r'training: "\e"')
    found = refused(text)
    assert [line.split()[1] for line in found] == [
        "weights.training",
        "runtime.threads",
        "sft.true",
        "prompts.per_round",
    ]


def test_of_a_long_section_not_all_keys_are_listed() -> None:
    (line,) = refused(SHAPES.replace("  lambda_consistency:", "  lambda_consitency: 1.0\n  lambda_consistency:", 1))
    assert line.startswith(
        "params.yaml: decoder.lambda_consitency = 1.0: unknown key, allowed here: train, first_round, "
    )
    assert line.endswith(" more (docs/parameters.md); did you mean lambda_consistency?") and len(line) < 500


def test_control_characters_in_a_key_are_escaped_and_long_keys_cut() -> None:
    (line,) = refused(SHAPES + r'"\e[31mred\e[0m\n": 1' + "\n")
    assert line.startswith(r"params.yaml: \u001b[31mred\u001b[0m\n = 1: unknown key, allowed here: schema, ")
    (line,) = refused(SHAPES + "x" * 120 + ": 1\n")
    assert line.startswith("params.yaml: " + "x" * 57 + "... = 1: unknown key")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB + change("seeds:\n- 0\n", "seeds: *i\n"), "more than 10,000 values up to here"),
        ("x: " + "[" * 5000 + "]" * 5000, "more than 32 deep"),
        ("x: " + "{a: " * 5000 + "1" + "}" * 5000, "more than 32 deep"),
        ("x:\n  " + "- " * 90_000 + "1", "more than 32 deep"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(600)), "more than 32 deep"),
        (SHAPES + CHAIN, "more than 32 deep"),
        (SHAPES + "x: [" + "1, " * 60_000 + "]", "more than 10,000 keys, values and brackets"),
        (SHAPES + "#" * 200_000, "characters: a params file has at most 200,000"),
    ],
)  # fmt: skip
def test_what_multiplies_or_lies_deep_is_refused_in_time(text: str, words: str) -> None:
    (line,) = refused(text)
    assert words in line and len(line) < 400


def test_a_hundred_problems_are_listed_and_the_others_counted() -> None:
    found = refused(change("seeds:\n- 0\n", "seeds: [" + "x, " * 2000 + "]\n"))
    assert len(found) == 101 and found[-1] == "params.yaml: and other problems; correct these first"


def test_a_profile_is_read_as_strictly(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, words in (("a: &a [*a]", "holds itself"), ("[" * 500, "32 deep"), ("true: 1", "keys must be text")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words) as error:
            load_profile(path)
        assert "\n" not in str(error.value)


def test_params_that_are_no_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.symlink_to("nowhere")
    with pytest.raises(ConfigError, match="does not exist"):
        load(path)
    path.unlink()
    os.mkfifo(path)  # opened, it would wait for ever
    with pytest.raises(ConfigError, match="is no file"):
        load(path)
    path.unlink()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        load(path)


def test_a_share_of_the_long_run_leaves_no_traceback() -> None:
    trials = [*random.Random(20).sample(systematic(), 50), *(mangled(seed) for seed in range(1000, 1020))]
    wrong = {trial.change: found for trial in trials if (found := outcome(trial)).kind not in ("taken", "refused")}
    assert wrong == {}
