"""Where samples lie: tars against the webdataset library, folders with tables, COCO's layout; damaged ones too."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import webdataset
from PIL import Image

from rank_e.data import BadSampleError, DataError
from rank_e.data.reader import SampleReader
from rank_e.data.samples import open_coco, open_folder
from rank_e.data.webdataset import WebdatasetSamples, open_webdataset
from tests.helpers.tars import CAPTIONS, image, members, write_tar

OPENERS: dict[str, Any] = {"webdataset": open_webdataset, "folder": open_folder, "coco": open_coco}


def reader(layout: str, path: str | Path | list[str], **options: object) -> SampleReader:
    where = path if isinstance(path, list) else str(path)
    return SampleReader(OPENERS[layout](where, **options), 16)


def contents(samples: SampleReader) -> list[tuple[list, str]]:
    return [(pixels.tolist(), caption) for pixels, caption in (samples.read(i) for i in range(len(samples)))]


@pytest.fixture
def expected() -> list[tuple[list, str]]:
    """What all three layouts must give: the middle 16 columns of the images, and the captions."""
    arrays = [np.asarray(Image.open(io.BytesIO(image(n))))[:, 2:18].transpose(2, 0, 1) for n in range(6)]
    return [(array.tolist(), caption) for array, caption in zip(arrays, CAPTIONS, strict=True)]


def test_webdataset_tars(tmp_path: Path, expected: list) -> None:
    write_tar(tmp_path / "b-1.tar", members(range(4, 6)))
    write_tar(tmp_path / "b-0.tar", members(range(4)))
    assert contents(reader("webdataset", tmp_path)) == expected
    assert contents(reader("webdataset", tmp_path / "b-[01].tar")) == expected
    parts = [str(tmp_path / "b-0.tar"), str(tmp_path / "b-1.tar")]
    assert contents(reader("webdataset", parts)) == expected
    assert contents(reader("webdataset", tmp_path / "b-1.tar")) == expected[4:]
    assert sorted(os.listdir(tmp_path)) == ["b-0.tar", "b-1.tar"]  # nothing is extracted


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_index_of_a_tar_agrees_with_the_webdataset_library(tmp_path: Path, format: int) -> None:
    long = "x" * 70 + "/" + "y" * 60 if format == tarfile.USTAR_FORMAT else "folder/" * 30 + "é" * 60
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("__meta__", b"skip me"),
            ("a/1.JPG", image(1, "jpeg")),
            ("a/1.txt", b"one"),
            ("b/1.webp", image(2, "webp")),
            ("b/1.txt", b"same key, other folder"),
            ("c.v/2.cls", b"7"),
            ("c.v/2.json", json.dumps({"caption": "two", "width": 3}).encode()),
            ("c.v/2.png", image(3)),
            ("noextension", b"x"),
            (f"{long}.txt", b"long name"),
            (f"{long}.jpeg", image(4, "jpeg")),
            ("3.seg.png", image(5)),
            ("3.png", image(6)),
            ("3.txt", b"\xef\xbb\xbf three \n"),
        ],
        format=format,
    )
    samples = WebdatasetSamples([path])
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    assert len(samples) == len(theirs) == 5
    for index, sample in enumerate(theirs):
        assert samples.name(index) == f"{path}:{sample['__key__']}"
        suffix = next(s for s in ("jpg", "jpeg", "png", "webp") if s in sample)
        assert samples.image(index) == sample[suffix]
    assert [samples.caption(i) for i in range(5)] == ["one", "same key, other folder", "two", "long name", "three"]
    named = WebdatasetSamples([path], column="caption")
    assert named.caption(2) == "two"
    with pytest.raises(BadSampleError, match=r"a\.tar:a/1: has no json"):
        named.caption(0)


def test_a_tar_sample_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    cases = [
        ([("0.txt", b"no image")], "has no image"),
        ([("1.png", image(1))], "has no txt and no json"),
        ([("2.png", image(2)), ("2.txt", b" \n")], "its caption is missing, empty or no text"),
        ([("3.png", image(3)), ("3.txt", b"\xff\xfe")], "its caption is not UTF-8"),
        ([("4.png", image(4)), ("4.json", b"{")], "its json cannot be read"),
        ([("5.png", image(5)), ("5.json", b'{"n": 1}')], "json: no column called prompt"),
        ([("6.png", image(6)), ("6.json", b'{"text": "a", "caption": "b"}')], "text and caption both fit"),
        ([("7.png", image(7)), ("7.json", b'{"text": null}')], "its caption is missing"),
        ([("8.png", image(8)[:400]), ("8.txt", b"truncated")], "cannot be decoded"),
    ]
    path = write_tar(tmp_path / "a.tar", [member for case, _ in cases for member in case])
    samples = reader("webdataset", path)
    for index, (_, reason) in enumerate(cases):
        with pytest.raises(BadSampleError, match=reason) as caught:
            samples.read(index)
        assert caught.value.name == f"{path}:{index}" and "\n" not in str(caught.value)


def test_damaged_tars_stop_at_once_and_are_named(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", members(range(6))).read_bytes()
    third = whole.index(b"00003.png")
    damaged = bytearray(whole)
    damaged[third + 5] ^= 1
    doubled = [*members(range(2)), ("00001.txt", b"again")]
    cases = {
        "empty": (b"", "is empty"),
        "middle": (whole[: third + 700], "cannot be read as a tar|truncated"),
        "boundary": (whole[:third], "ends without a tar's end mark"),
        "header": (bytes(damaged), f"damaged at byte {third}"),
        "joined": (whole + whole, "several tars in one"),
        "packed": (gzip.compress(whole), "uncompressed"),
        "html": (b"<html>" * 200, "is a web page"),
        "nothing": (b"\0" * 10240, "no samples in the tars"),
        "doubled": (write_tar(tmp_path / "d.tar", doubled).read_bytes(), r"00001\.txt stands there twice"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            reader("webdataset", path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    for place in ("missing.tar", "no-*.tar"):
        with pytest.raises(DataError, match=r"(missing|no-\*)\.tar: (does not exist|no tar there)"):
            reader("webdataset", tmp_path / place)


def test_a_tar_that_shrinks_after_indexing_gives_bad_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members(range(6)))
    samples = reader("webdataset", path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"00005.png") + 600])
    assert samples.read(4)[1] == CAPTIONS[4]
    with pytest.raises(BadSampleError, match=r"00005: ends after \d+ of \d+ bytes"):
        samples.image(5)


def test_the_index_takes_little_memory_a_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.{kind}", b"x") for n in range(2000) for kind in ("jpg", "txt")])
    samples = WebdatasetSamples([path])
    columns = [samples._tar, samples._header, *(column for span in samples._spans.values() for column in span)]
    assert len(samples) == 2000 and sum(c.itemsize for c in columns) <= 64


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_folder_with_a_table(tmp_path: Path, kind: str, expected: list) -> None:
    (tmp_path / "images").mkdir()
    for n in range(6):
        (tmp_path / "images" / f"{n}.png").write_bytes(image(n))
    table = pd.DataFrame({"file_name": [f"images/{n}.png" for n in range(6)], "n": range(6), "caption": CAPTIONS})
    path = tmp_path / f"metadata.{kind}"
    writers = {
        "csv": lambda: table.to_csv(path, index=False),
        "tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True, force_ascii=False),
        "parquet": lambda: table.to_parquet(path),
    }
    writers[kind]()
    assert contents(reader("folder", tmp_path)) == expected
    moved = path.rename(tmp_path / f"mine.{kind}")
    with pytest.raises(DataError, match=r"data\.captions"):
        reader("folder", tmp_path)
    assert contents(reader("folder", tmp_path, captions=moved, column="caption")) == expected


def test_a_folder_names_missing_images_and_captions(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(image(0))
    (tmp_path / "captions.csv").write_text('image,text\n0.png,a\n1.png,b\n0.png," "\n', encoding="utf-8")
    samples = reader("folder", tmp_path)
    assert samples.read(0)[1] == "a"
    for index, reason in ((1, r"1\.png: cannot be read \(No such file"), (2, r"0\.png: its caption is missing, empty")):
        with pytest.raises(BadSampleError, match=reason):
            samples.read(index)
    with pytest.raises(DataError, match=r"captions\.csv: no column 'file'.*data\.image_column"):
        reader("folder", tmp_path, image_column="file")
    with pytest.raises(DataError, match="is no folder"):
        reader("folder", tmp_path / "nowhere")


def write_coco(root: Path) -> None:
    """COCO's layout, images and annotations out of order, five captions for the first image."""
    (root / "annotations").mkdir()
    (root / "val2014").mkdir()
    images, notes = [], []
    for n in (3, 0, 5, 1, 4, 2):
        name = f"COCO_val2014_{n + 42:012d}.jpg"
        (root / "val2014" / name).write_bytes(image(n))
        images.append({"id": n + 42, "file_name": name, "height": 16, "width": 20, "license": 1})
        notes.append({"image_id": n + 42, "id": 900 - n, "caption": f"{CAPTIONS[n]}\n"})
    notes += [{"image_id": 42, "id": 1000 + k, "caption": f"other {k}"} for k in (3, 1, 0, 2)]
    content = {"info": {}, "images": images, "licenses": [], "annotations": notes}
    (root / "annotations" / "captions_val2014.json").write_text(json.dumps(content), encoding="utf-8")


def test_coco_layout(tmp_path: Path, expected: list) -> None:
    write_coco(tmp_path)
    assert contents(reader("coco", tmp_path)) == expected
    every = reader("coco", tmp_path, every_caption=True)
    others = [f"other {k}" for k in range(4)]
    assert [every.caption(i) for i in range(len(every))] == [CAPTIONS[0], *others, *CAPTIONS[1:]]
    assert torch.equal(every.read(4)[0], every.read(0)[0]) and not torch.equal(every.read(5)[0], every.read(0)[0])
    assert every.image(9).size == (20, 16)


def test_coco_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"captions_val2014\.json: does not exist"):
        reader("coco", tmp_path)
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "captions_val2014.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["annotations"] = [note for note in content["annotations"] if note["image_id"] != 43]
    file.write_text(json.dumps(content), encoding="utf-8")
    samples = reader("coco", tmp_path)
    assert len(samples) == 6
    with pytest.raises(BadSampleError, match="its caption is missing"):
        samples.read(1)
    for broken, message in (
        ("{}", "is no COCO captions file"),
        ("[", "is no COCO captions file"),
        (json.dumps(content | {"images": content["images"][:2]}), "is not listed"),
        ('{"images": [], "annotations": []}', "lists no images"),
    ):
        file.write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            reader("coco", tmp_path)
