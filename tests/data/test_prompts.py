"""Prompts alone: every kind of file gives the texts that were written, and each bad file one line that names it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from rank_e.data import DataError
from rank_e.data.prompts import PromptRow, open_prompts

TEXTS = ['A sign that says "tie", in red.', "Two dogs, one cat", "naïve café ☕", "None", "42", 'the word """quoted"""']
LABELS = ["sign", "animals", "sign", "", "0", "x"]


def rows(texts: list[str], labels: list[str] | None = None) -> list[PromptRow]:
    return [PromptRow(i, text, label) for i, (text, label) in enumerate(zip(texts, labels or [""] * 99, strict=False))]


def write_txt(path: Path) -> list[PromptRow]:
    path.write_text("\ufeff" + "\r\n\r\n".join(TEXTS) + "\n", encoding="utf-8", newline="")
    return rows(TEXTS)


def write_csv(path: Path) -> list[PromptRow]:
    pd.DataFrame({"id": range(6), "Prompt": TEXTS, "Category": LABELS}).to_csv(path, index=False)
    return rows(TEXTS, LABELS)


def write_tsv(path: Path) -> list[PromptRow]:
    lines = ["Prompt\tCategory\tChallenge\tNote"]  # PartiPrompts' layout: no quoting, empty last fields
    lines += [f"{text}\t{label}\tBasic\t" for text, label in zip(TEXTS, LABELS, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rows(TEXTS, LABELS)


def write_jsonl(path: Path) -> list[PromptRow]:
    objects = [{"tag": t, "include": [{"class": "cow"}], "prompt": p} for p, t in zip(TEXTS, LABELS, strict=True)]
    path.write_text("\n".join(json.dumps(value) for value in objects), encoding="utf-8")  # GenEval's layout
    return rows(TEXTS, LABELS)


def write_json(path: Path) -> list[PromptRow]:
    path.write_text(json.dumps(TEXTS), encoding="utf-8")  # HPSv2's layout
    return rows(TEXTS)


def write_parquet(path: Path) -> list[PromptRow]:
    pd.DataFrame({"x": [[1.0]] * 6, "text": TEXTS, "style": LABELS}).to_parquet(path)
    return rows(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("txt", write_txt),
        ("csv", write_csv),
        ("tsv", write_tsv),
        ("jsonl", write_jsonl),
        ("json", write_json),
        ("parquet", write_parquet),
    ],
)
def test_every_kind_of_file_gives_the_prompts_that_were_written(
    tmp_path: Path, kind: str, write: Callable[[Path], list[PromptRow]]
) -> None:
    path = tmp_path / f"prompts.{kind}"
    assert write(path) == open_prompts(path)


def test_one_column_csv_without_quoting_keeps_whole_lines(tmp_path: Path) -> None:
    """The layout of the COCO captions in use: commas, quotation marks and outer spaces as they come."""
    lines = ["A bowl, a cup and a pan. ", '"Head shot" of a zebra', 'a rack of "WWF" toys, red', "", "a cat", "a cat"]
    path = tmp_path / "coco_captions.csv"
    path.write_text("Prompt\n" + "\n".join(lines), encoding="utf-8")
    assert [row.text for row in open_prompts(path)] == [line.strip() for line in lines if line]


def test_quoted_csv_may_hold_line_breaks_and_errors_name_the_line_where_a_row_starts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('caption\n"two\nlines, ""one"" caption"\n"next"\n', encoding="utf-8")
    assert [row.text for row in open_prompts(path)] == ['two\nlines, "one" caption', "next"]
    path.write_text('caption,n\n"two\nlines",1\n,2\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"prompts\.csv line 4: caption is empty"):
        open_prompts(path)


def test_strict_csv_agrees_with_pandas_on_random_fields(tmp_path: Path) -> None:
    path = tmp_path / "random.csv"
    pieces = ["a", ",", '"', "\n", " b", "'", "é"]
    texts = ["t" + "".join(pieces[(7 * i + j * j + i * j) % len(pieces)] for j in range(i % 9)) for i in range(200)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["n", "text"], *([i, text] for i, text in enumerate(texts))])
    assert list(pd.read_csv(path)["text"]) == texts
    assert [row.text for row in open_prompts(path)] == [text.strip() for text in texts]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("text,caption,Label\na,b,c\n", encoding="utf-8")
    assert open_prompts(path, column="caption") == [PromptRow(0, "b", "")]
    assert open_prompts(path, column="text", category="Label") == [PromptRow(0, "a", "c")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: is empty"),
        ("a.txt", b"\n \r\n\t\n", r"a\.txt: holds no prompt"),
        ("a.txt", b"good\n\xff\xfe\n", r"a\.txt line 2: is not UTF-8"),
        ("a.md", b"x", r"a\.md: unknown kind"),
        ("a.csv", b"Prompt\n", r"a\.csv: holds no rows"),
        ("a.csv", b"\n\n", r"a\.csv: holds no header"),
        ("a.csv", b"A dog runs\nA cat sits\n", r"a\.csv: no column called prompt.*'A dog runs'"),
        ("a.csv", b"text,caption\na,b\n", r"a\.csv: text and caption both fit"),
        ("a.csv", b"prompt,prompt\na,b\n", r"a\.csv line 1: column 'prompt' stands there twice"),
        ("a.csv", b"prompt,n\na,1\nb,c,2\n", r"a\.csv line 3: has 3 fields, the header has 2"),
        ("a.csv", b'prompt,n\n"a,1\nb,2\n', r"a\.csv line 2: unexpected end"),
        ("a.tsv", b'prompt\tn\n"a" b\t1\n"c ""d"""\t2\n', r"a\.tsv line 2: .*line 3 is quoted"),
        ("a.csv", b'prompt\na, b\n"c, d"\n', r"a\.csv line 2: has 2 fields.*line 3 is quoted"),
        ("a.tsv", b"prompt\tn\na\t1\n\t2\n", r"a\.tsv line 3: prompt is empty"),
        ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": 3}\n', r"a\.jsonl line 3: prompt is a int, not text"),
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', r"prompt and text both fit"),
        ("a.jsonl", b'{"prompt": "a"}\n{"n": "b"}\n', r"a\.jsonl line 2: prompt is missing"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n', r"a\.jsonl line 2: is not JSON"),
        ("a.jsonl", b'["a"]\n', r"a\.jsonl line 1: is a list, not an object"),
        ("a.json", b'{"prompt": "a"}', r"a\.json: holds an object, not a list"),
        ("a.json", b"[]", r"a\.json: holds no rows"),
        ("a.parquet", b"PAR1 not at all", r"a\.parquet: cannot be read as parquet"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_prompts(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv"):
        with pytest.raises(DataError, match=rf"{name}: does not exist"):
            open_prompts(tmp_path / name)
    with pytest.raises(DataError, match="is not a file"):
        open_prompts(tmp_path.rename(tmp_path.with_suffix(".txt")))
    path = tmp_path.with_suffix(".txt") / "a.csv"
    path.write_text("prompt\na\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'captoin', only 'prompt'"):
        open_prompts(path, column="captoin")
    text = path.with_suffix(".txt")
    text.write_text("a\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no column 'prompt'"):
        open_prompts(text, column="prompt")


def test_a_truncated_or_textless_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"prompt": ["a", None]}).to_parquet(path)
    with pytest.raises(DataError, match=r"a\.parquet row 1: prompt is missing"):
        open_prompts(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_prompts(path)
