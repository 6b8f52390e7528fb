"""Lists as other programs write them: the prompts that were meant, or one line that names file and place."""

import csv
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from rank_e.data import DataError
from rank_e.data.parquet import read_column
from rank_e.data.prompts import open_prompts
from rank_e.data.text_files import text_lines

TEXTS = ["a red cat", "a blue dog", "a green bench", "two birds", "six boats", "a kite"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
DELTA = {"use_dictionary": False, "column_encoding": {"prompt": "DELTA_BYTE_ARRAY"}}
PAGE = b"\n  <!DOCTYPE html>\n<html><body>Access to this file is restricted</body></html>\n"


def prompts(path: Path) -> list[str]:
    return [row.text for row in open_prompts(path)]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl"])
def test_a_line_ends_as_any_system_ends_it(tmp_path: Path, name: str, end: str) -> None:
    lines = [json.dumps({"prompt": text}) if name == "a.jsonl" else text for text in TEXTS]
    head = [] if name in ("a.txt", "a.jsonl") else ["prompt"]
    (tmp_path / name).write_bytes(end.join([*head, *lines]).encode())
    assert prompts(tmp_path / name) == TEXTS
    # A quotation mark in the middle makes a list of lines of it: they end alike.
    if head:
        (tmp_path / name).write_bytes(end.join(["prompt", '"OPEN" on a door', *TEXTS]).encode())
        assert prompts(tmp_path / name) == ['"OPEN" on a door', *TEXTS]


def test_only_line_ends_end_a_line() -> None:
    assert [line for _, line in text_lines("a\x0bb\x0cc\x1cd\x85e\u2028f\rg")] == ["a\x0bb\x0cc\x1cd\x85e\u2028f", "g"]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_field_may_be_as_long_as_it_is(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / f"a.{'csv' if delimiter == ',' else 'tsv'}"
    texts = ["a red cat", "a long, \t caption " * 20_000, "a dog"]
    limit = csv.field_size_limit()
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["prompt", "n"], *([text, "1"] for text in texts)])
    assert prompts(path) == [text.strip() for text in texts]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # Spark escapes by backslashes.
        ("a.csv", b'prompt,style\n"a \\"red\\" cat",photo\n"a dog",photo\n', r"a\.csv line 2: .* behind backslashes"),
        ("a.csv", b'prompt\n"a \\"red\\" cat"\na dog\n', r"a\.csv line 2: .* behind backslashes"),
        ("a.csv", b'prompt,n\na dog,1\na \\"red\\" cat,2\n', r"a\.csv line 3: .* behind backslashes"),
        # Some fields are quoted, others hold quotation marks as text.
        ("a.csv", b'prompt,style\n"a cat",x\n"OPEN" on a door,x\n', r"a\.csv line 3: .*line 2 is quoted"),
        ("a.csv", b'prompt,style\n"OPEN" on a door,x\n"a cat" ,x\n', r"a\.csv line 2: .*line 3 is quoted"),
        ("a.csv", b'style,prompt\nx, "a cat"\n', r"a\.csv line 2: white space before a quoted field"),
        ("a.tsv", b'prompt\tn\n"OPEN" on a door\t1\n"a cat"\t2\n', r"a\.tsv line 2: .*line 3 is quoted"),
        # Separated by something else.
        ("a.csv", b'\xef\xbb\xbfprompt;style\r\n"a cat; sitting";photo\r\n', r"a\.csv line 1: .* separated by ';'"),
        ("a.csv", b'"prompt";"style"\n"a cat";"photo"\n', r"a\.csv line 1: .* separated by ';'"),
        ("a.csv", b"prompt\tstyle\na cat, sitting\tphoto\n", r"a\.csv line 1: .* separated by '\\t'"),
        ("a.csv", b"prompt|style\na cat|photo\n", r"a\.csv line 1: .* separated by '\|'"),
        ("a.tsv", b"prompt,style\na cat,photo\n", r"a\.tsv line 1: .* separated by ','"),
        ("a.csv", b"sep=;\nprompt;style\na cat;photo\n", r"a\.csv line 1: 'sep=;' is Excel's"),
        ("a.csv", b'"sep=,"\nprompt,style\na cat,photo\n', r"a\.csv line 1: .* is Excel's"),
        # Other encodings.
        ("a.txt", "a red cat\r\na dog\r\n".encode("utf-16-le"), r"a\.txt: line 1 holds NUL; save .* as UTF-8"),
        ("a.txt", "a red cat\r\na dog\r\n".encode("utf-16-be"), r"a\.txt: line 1 holds NUL; save .* as UTF-8"),
        ("a.csv", "prompt\r\na red cat\r\n".encode("utf-32-le"), r"a\.csv: line 1 holds NUL; save .* as UTF-8"),
        ("a.json", '["a red cat"]'.encode("utf-16-le"), r"a\.json: line 1 holds NUL; save .* as UTF-8"),
        ("a.txt", "a red cat\n".encode("utf-16"), r"a\.txt line 1: is not UTF-8"),
        ("a.txt", b"a red cat\rna\xefve\r", r"a\.txt line 2: is not UTF-8"),
        ("a.csv", b"prompt\na\0b\n", r"a\.csv line 2: prompt holds NUL; save the file as UTF-8"),
        ("a.csv", b'prompt,style\na,"b\0"\n', r"a\.csv line 2: style holds NUL"),
        ("a.txt", b"good\n\na\0b\n", r"a\.txt: line 3 holds NUL"),
        # Half of a character, which nothing can write or encode.
        ("a.json", b'["a cat", "a dog \\ud83d"]', r"a\.json item 1: prompt holds half a character"),
        ("a.json", b'[{"prompt": "\\ud800"}]', r"a\.json item 0: prompt holds half a character"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\udc00 b"}', r"a\.jsonl line 2: text holds half a character"),
        ("a.jsonl", b'{"text": "a", "tag": "\\udc00"}', r"a\.jsonl line 1: tag holds half a character"),
        ("a.jsonl", b'{"t\\ud800": "a"}', r"a\.jsonl: no column .* \('t\\ud800'\)"),
        # Named twice.
        ("a.csv", b"prompt,n,n\na,1,2\n", r"a\.csv line 1: column 'n' stands there twice"),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}',
            r"a\.jsonl line 2: .*'prompt' stands there twice",
        ),
        ("a.json", b'[{"prompt": "a", "meta": {"x": 1, "x": 2}}]', r"a\.json: .*key 'x' stands there twice"),
        # Not the file at all.
        ("a.txt", POINTER, r"a\.txt: is a Git LFS pointer, .*`git lfs pull`"),
        ("a.csv", POINTER, r"a\.csv: is a Git LFS pointer"),
        ("a.json", POINTER, r"a\.json: is a Git LFS pointer"),
        ("a.parquet", POINTER, r"a\.parquet: is a Git LFS pointer"),
        ("a.txt", PAGE, r"a\.txt: is a web page"),
        ("a.csv", b"\xef\xbb\xbf<html><head>", r"a\.csv: is a web page"),
        ("a.jsonl", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"a\.jsonl: is a web page"),
        ("a.parquet", PAGE, r"a\.parquet: is a web page"),
        ("a.json", b"[" * 100_000, r"a\.json: is not JSON \(nested too deeply\)"),
        ("a.txt", b"404: Not Found", r"a\.txt: holds nothing but '404: not found', which a server sent"),
        ("a.csv", b"Entry not found\n", r"a\.csv: holds nothing but 'entry not found'"),
        ("a.txt", b"<!-- login -->\n<p>hello\n", r"a\.txt: is a web page"),
        ("a.txt", b"/annex/objects/SHA256E-s3--00.txt\n", r"a\.txt: is a pointer of git-annex or Xet"),
        ("a.txt", b"# xet version 0\nfilesize = 12\n", r"a\.txt: is a pointer of git-annex or Xet"),
        ("a.txt", b"<<<<<<< HEAD\na\n=======\nb\n>>>>>>> c\n", r"a\.txt: holds an unresolved conflict of git"),
        # Another kind of file: its brackets and columns would be prompts.
        ("a.txt", b'["a cat",\n "a dog"]\n', r"a\.txt: holds JSON \(\.json\), not a prompt on each line"),
        ("a.txt", b'{"prompt": "a"}\n{"prompt": "b"}\n', r"a\.txt: holds JSON \(\.jsonl\)"),
        ("a.txt", b"id,Prompt\n1,a cat\n", r"a\.txt: holds a table \(\.csv\)"),
        ("a.txt", b"prompt\tstyle\na cat\tphoto\n", r"a\.txt: holds a table \(\.tsv\)"),
        # Two fields a row under a header of one, which plain reading would take for one prompt with quotation marks.
        ("a.csv", b'prompt\n"a cat","photo"\n', r"a\.csv line 2: .*line 2 holds a quoted field beside others"),
        ("a.csv", b'prompt\na dog\n"a cat",photo\n', r"a\.csv line 3: .*line 3 holds a quoted field beside others"),
        ("a.csv", b'prompt\na cat,"photo, nice"\n', r"a\.csv line 2: .*line 2 holds a quoted field beside others"),
        # Files that were joined, and what nobody sees.
        (
            "a.txt",
            b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n",
            r"a\.txt: line 2 begins with a byte order mark",
        ),
        ("a.csv", b"prompt\na\nprompt\nb\n", r"a\.csv line 3: repeats the header"),
        ("a.csv", b"\xef\xbb\xbfprompt,n\na,1\n\xef\xbb\xbfprompt,n\n", r"a\.csv line 3: repeats the header"),
        ("a.txt", b"a cat\r\n\x1a", r"a\.txt: line 2 holds nothing that can be seen \('\\x1a'\)"),
        ("a.csv", "prompt\na\n\u200b\n".encode(), r"a\.csv line 3: prompt holds nothing that can be seen"),
        # A category that is no word.
        ("a.json", b'[{"prompt": "a", "tag": NaN}]', r"a\.json item 0: tag is 'nan', not text"),
        ("a.json", b'[{"prompt": "a", "tag": ["x"]}]', r"a\.json item 0: tag is .*, not text"),
    ],
)
def test_what_cannot_be_read_right_is_one_line_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_prompts(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    str(caught.value).encode()


def test_errors_show_the_first_of_many_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join([*(f"column {n}" for n in range(9000)), "x" * 50_000]))
    with open(tmp_path / "a.csv", "a") as file:
        file.write("\n" + "," * 9000 + "\n")
    with pytest.raises(DataError, match=r"'column 0', .*'column 4' and 8996 more") as caught:
        open_prompts(tmp_path / "a.csv")
    assert len(str(caught.value)) < 500


def write_parquet(path: Path, columns: dict[str, list], **options: object) -> Path:
    names = [name.rstrip("'") for name in columns]  # a prime makes a name of one that stands there already
    parquet.write_table(pa.Table.from_arrays([pa.array(column) for column in columns.values()], names), path, **options)
    return path


def test_a_parquet_column_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"prompt": ["a"], "prompt'": ["b"], "text": ["c"]})
    with pytest.raises(DataError, match=r"a\.parquet: column 'prompt' stands there twice"):
        open_prompts(path, column="prompt")
    assert [row.text for row in open_prompts(path, column="text")] == ["c"]
    twice = write_parquet(tmp_path / "b.parquet", {"prompt": ["a"], "style": ["b"], "style'": ["c"]})
    with pytest.raises(DataError, match=r"b\.parquet: column 'style' stands there twice"):
        open_prompts(twice)


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"row_group_size": 7000, "data_page_size": 100}, DELTA]
)
def test_parquet_in_pieces_is_what_was_written(tmp_path: Path, options: dict) -> None:
    texts = [f"prompt {n * n % 977}" + " é" * (n % 3) for n in range(20_000)]
    labels = [None if n % 5 == 0 else n % 7 for n in range(20_000)]
    path = write_parquet(tmp_path / "a.parquet", {"prompt": texts, "tag": labels}, **options)
    rows = open_prompts(path)
    assert [row.text for row in rows] == texts
    assert [row.category for row in rows] == ["" if label is None else str(label) for label in labels]


def test_a_value_that_repeats_is_held_once(tmp_path: Path) -> None:
    """A file of kilobytes whose texts would be 4 GB, each a copy."""
    packed = pa.DictionaryArray.from_arrays(np.zeros(200_000, dtype=np.int32), ["x" * 20_000])
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": packed}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000 and parquet.read_schema(path).field("prompt").type == pa.string()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = open_prompts(path)
    assert len(rows) == 200_000 and rows[0].text is rows[-1].text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (np.zeros(400_000, dtype=np.int8), {}),  # rows without end
        (["x" * 1000] * 3000, {"use_dictionary": False, "compression": "zstd"}),  # text that unpacks
        (["x" * 1000 + f"{n:09}" for n in range(3000)], DELTA),
    ],
)
def test_a_parquet_file_never_grows_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: Any, options: dict
) -> None:
    monkeypatch.setattr("rank_e.data.parquet.SMALL", 1 << 20)
    monkeypatch.setattr("rank_e.data.parquet.GROWTH", 10)
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pa.table({"prompt": pa.array(column)}), path, **options)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb\.parquet: \d+ bytes that unpack to more than 1 MiB") as caught:
        read_column(path, "prompt")
    assert "\n" not in str(caught.value)


def test_parquet_text_that_is_not_utf8_is_named_by_its_row(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"na\xefve"]).view(pa.string())
    parquet.write_table(pa.table({"prompt": texts}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet row 1: is not UTF-8"):
        open_prompts(tmp_path / "a.parquet")


def test_parquet_columns_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    for values, message in (([b"a"], "a bytes"), ([["a"]], "a list"), ([{"x": "a"}], "an object"), ([1], "a int")):
        path = write_parquet(tmp_path / "a.parquet", {"prompt": values})
        with pytest.raises(DataError, match=rf"a\.parquet row 0: prompt is {message}, not text"):
            open_prompts(path)


@pytest.mark.parametrize("line", ['"OPEN", a sign', 'it says, "no, thanks"', "[a cat]", "a cat,a dog", "{cat}"])
def test_prose_with_quotation_marks_commas_and_brackets_stays_as_it_is(tmp_path: Path, line: str) -> None:
    for name, head in (("a.txt", ""), ("a.csv", "prompt\n")):
        (tmp_path / name).write_text(f"{head}a, b\n{line}\n")
        assert prompts(tmp_path / name) == ["a, b", line]
    (tmp_path / "b.txt").write_text(f"{line}\na, b\n")
    assert prompts(tmp_path / "b.txt") == [line, "a, b"]


def test_parquet_values_that_python_has_not_are_one_line(tmp_path: Path) -> None:
    for kind in (pa.timestamp("us", tz="Nowhere/X"), pa.duration("s")):
        table = pa.table({"prompt": ["a"], "category": pa.array([2**53 if kind == pa.duration("s") else 0], kind)})
        parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet: cannot be read as parquet"):
            open_prompts(tmp_path / "a.parquet")
