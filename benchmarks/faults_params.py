"""Params files that are wrong in every place and in many ways: each is taken, or refused in lines, within two seconds.

    python -m benchmarks.faults_params [--systematic 4000] [--random 400] [--seed 0]

Systematic: every key of two whole profiles with every odd value, or under an odd key. Random: the text of a profile
with lines and signs put in, taken out and exchanged. What is taken goes through the preflight's own reckoning too.
Writes benchmarks/results/faults-params-<date>.json, counts of outcomes; exit status 1 if any trial ended otherwise.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.preflight.choices import choices
from pipeline.preflight.estimate import disk, memory, summary
from pipeline.preflight.named import missing_files
from pipeline.preflight.places import odd_places
from pipeline.preflight.validate import base_problems
from rank_e.config import ConfigError
from rank_e.config.loading import parse_text
from rank_e.config.profiles import resolve
from stages.runtime.failures import words

ROOT = Path(__file__).parents[1]
PROFILES = ("shapes", "llamagen-xl-clip")
PATIENCE = 2.0
"""Seconds of one core that a trial may take."""
LONGEST = 600
"""Characters of a line that a person still reads."""
VALUES = (
    "", "null", "true", "-1", "0", "1", "10000001", "1e400", "-.inf", ".nan", "0.5", "9" * 5000, "0x" + "f" * 3000,
    "text", "''", '"a\\0b"', '"\\ud800"', '"\\e[31mred"', '"a\\nb"', "é", "x" * 300, "../" * 100, "2020-13-45",
    "2020-01-01", "[]", "{}", "[[[]]]", "[1, two, null]", "{kind: none}", "{kind: [1]}", "{kind: 'os:system'}",
    "{1: 2}", "{null: 2}", "{[a]: 2}", "{true: {1: 3}}", "&a [*a]", "&a {a: *a}", "*nought", "!!binary '%'",
    "!!int nine", "!!float nine", "!!set {a}", "!!omap [a: 1]", "!!python/object:os.system x", "!own x",
    "!!timestamp x", "[" * 60 + "]" * 60, "{<<: 3}", "'unclosed", "[unclosed", "@at", "`tick", "%percent",
    "|\n  a\n", ">\n  a",
)  # fmt: skip
"""What stands in place of a value, as YAML."""
KEYS = ("1", "true", "null", "1.5", "2020-01-01", '"\\e[31m"', '"a\\nb"', "é", "x" * 300, "[a]", "{a: 1}", "<<", "''")
"""What stands in place of a key."""
PIECES = (
    "\0", "\ufeff", "\t", "\x85", "\u2028", "\x7f", "&a", "*a", "<<: *a", "- ", "? ", ": ", "#", "{", "]", "!!",
    "%YAML 9\n---\n", "...\n", "---\n",
)  # fmt: skip
"""What random trials put in."""


class Trial(NamedTuple):
    """A wrong file: what was done, and its text."""

    change: str
    text: str


class Outcome(NamedTuple):
    """taken, refused, or how it went wrong; the first line that was said; seconds."""

    kind: str
    line: str
    seconds: float


def lines_with_keys(text: str) -> Iterator[tuple[int, str, str]]:
    """(number, indent with key, value with comment) of each line that holds a key."""
    for number, line in enumerate(text.splitlines()):
        head, colon, tail = line.partition(":")
        if colon and not line.lstrip().startswith("#") and head.strip():
            yield number, head, tail


def systematic() -> list[Trial]:
    """Every line of the profiles with every value in place of its own, and with every key."""
    found = []
    for profile in PROFILES:
        text = resolve(ROOT / "profiles" / f"{profile}.yaml")
        lines = text.splitlines()
        for number, head, tail in lines_with_keys(text):
            indent = head[: len(head) - len(head.lstrip(" -"))]
            changes = [(f"= {value}", f"{head}: {value}") for value in VALUES]
            changes += [(f"as {key}", f"{indent}{key}:{tail}") for key in KEYS]
            for what, line in changes:
                changed = "\n".join([*lines[:number], line, *lines[number + 1 :], ""])
                found.append(Trial(f"{profile}, line {number + 1} {what[:40]}", changed))
    return found


def mangled(seed: int) -> Trial:
    """A profile's text after one to eight random changes."""
    chance = random.Random(seed)
    text = resolve(ROOT / "profiles" / f"{chance.choice(PROFILES)}.yaml")
    for _ in range(chance.randint(1, 8)):
        place, other = sorted(chance.choices(range(len(text)), k=2))
        length = chance.randint(1, 40)
        match chance.randrange(5):
            case 0:
                text = text[:place] + chance.choice(PIECES) + text[place:]
            case 1:
                text = text[:place] + text[place + length :]
            case 2:
                text = text[:place] + text[other : other + length] + text[place:]
            case 3:
                text = (
                    text[:place]
                    + chr(chance.choice((chance.randrange(256), chance.randrange(0x3000))))
                    + text[place + 1 :]
                )
            case _:
                text = text[:place] + "\n" + chance.choice(VALUES) + "\n" + text[place:]
    return Trial(f"random {seed}", text)


def reckon(text: str) -> None:
    """What `rank-e validate` says of a file, but for DVC's graph."""
    params = parse_text(text)
    sizes, _ = base_problems(params)
    missing_files(params)
    odd_places(params)
    choices(params)
    if sizes is not None:
        memory(sizes, params)
        disk(sizes, params)
        summary(sizes, params)


def outcome(trial: Trial, read: Callable[[str], Any] = reckon) -> Outcome:
    """Read one file; any error that is not said in readable lines is wrong, and so is more than PATIENCE."""
    began = time.process_time()
    kind, line = "taken", ""
    try:
        read(trial.text)
    except ConfigError as error:
        kind, lines = "refused", str(error).split("\n")
        line = lines[0]
        if not all(part.isprintable() and len(part) <= LONGEST and part.startswith("params.yaml") for part in lines):
            kind = "unreadable lines"
    except Exception as error:
        said = words(error)  # as the command would: a folder whose name is too long, or that may not be read
        kind, line = ("refused", said) if said else ("traceback", f"{type(error).__name__}: {str(error)[:200]}")
    seconds = time.process_time() - began
    return Outcome("too slow" if seconds > PATIENCE else kind, line, seconds)


def main() -> None:
    """Run the trials, write the counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults_params", description=__doc__.splitlines()[0])
    parser.add_argument("--systematic", type=int, default=4000)
    parser.add_argument("--random", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    every = systematic()
    trials = random.Random(given.seed).sample(every, min(given.systematic, len(every)))
    trials += [mangled(given.seed + number) for number in range(given.random)]
    counts: Counter[str] = Counter()
    wrong: list[dict[str, str]] = []
    slowest = 0.0
    for trial in trials:
        found = outcome(trial)
        counts[found.kind] += 1
        slowest = max(slowest, found.seconds)
        if found.kind not in ("taken", "refused"):
            wrong.append({"change": trial.change, "outcome": found.kind, "line": found.line})
            print(f"{found.kind}: {trial.change}: {found.line}", file=sys.stderr, flush=True)
    date = datetime.now(UTC).date().isoformat()
    result = {
        "date": date,
        "seed": given.seed,
        "trials": {"systematic": len(trials) - given.random, "random": given.random, "possible": len(every)},
        "outcomes": dict(sorted(counts.items())),
        "slowest_seconds": round(slowest, 2),
        "wrong": wrong,
    }
    path = given.output / f"faults-params-{date}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{path}: {dict(counts)}, slowest {slowest:.2f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
