"""The messages that the FAQ explains are those that the code prints."""

import ast
import re
from functools import cache

import pytest

from tests.helpers.project import ROOT

FAQ = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
MESSAGES = [line for block in re.findall(r"```text\n(.*?)```", FAQ, re.DOTALL) for line in block.splitlines()]
LEAST = 4
"""Characters of a part that is looked for: what stands between two values may be shorter."""


@cache
def texts() -> list[str]:
    """Every text that the code holds, those between the values of an f-string apart; and the Makefile."""
    found = [(ROOT / "Makefile").read_text(encoding="utf-8")]
    for package in ("rank_e", "stages", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            found += [
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
            ]
    return found


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_codes(message: str) -> None:
    parts = [part.strip() for part in re.split(r"\.\.\.|(?<=[;:,]) ", message)]  # thing, place and fix are put together
    parts = [part.strip(";:, ") for part in parts if len(part) >= LEAST]
    assert parts
    for part in parts:
        assert any(part in text for text in texts()), part


def test_every_question_about_a_message_quotes_one() -> None:
    assert len(MESSAGES) > 20
    sections = re.split(r"^## ", FAQ, flags=re.MULTILINE)
    assert len(sections) == 7 and all("\n### " in section for section in sections[1:])
