"""Images with captions as others pack them: each with its own caption, a bad sample that is counted, or one line."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from rank_e.data import BadSampleError, DataError, FileDataset
from rank_e.data.reader import SampleReader
from rank_e.data.samples import FileSamples, open_coco, open_folder
from rank_e.data.webdataset import WebdatasetSamples, open_webdataset
from tests.helpers.tars import image, members, write_tar


def test_members_that_are_not_side_by_side_are_refused(tmp_path: Path) -> None:
    apart = [*(m for m in members(range(3)) if m[0].endswith("png")), *(m for m in members(range(3)) if "txt" in m[0])]
    with pytest.raises(DataError, match=r"a\.tar: members of 00000 are not side by side"):
        open_webdataset(str(write_tar(tmp_path / "a.tar", apart)))
    one = [*members(range(2)), ("00000.json", b"{}")]
    with pytest.raises(DataError, match=r"b\.tar: members of 00000 are not side by side"):
        open_webdataset(str(write_tar(tmp_path / "b.tar", one)))
    write_tar(tmp_path / "c-0.tar", members(range(2)))  # in two tars a name may stand twice
    write_tar(tmp_path / "c-1.tar", members(range(2)))
    assert len(open_webdataset(str(tmp_path / "c-*.tar"))) == 4


def test_images_whose_names_hold_more_dots_are_never_put_into_one_sample(tmp_path: Path) -> None:
    dotted = [(f"photo.{n}.{kind}", data) for n in range(3) for kind, data in (("png", image(n)), ("txt", b"a cat"))]
    with pytest.raises(DataError, match=r"a\.tar: an image's name ends in \.0\.png, and a sample's at its first dot"):
        open_webdataset(str(write_tar(tmp_path / "a.tar", dotted)))
    mask = [("v1.0/3.seg.png", image(1)), ("v1.0/3.png", image(2)), ("v1.0/3.txt", b"a cat")]
    samples = open_webdataset(str(write_tar(tmp_path / "b.tar", mask)))
    assert samples.image(0) == image(2) and samples.caption(0) == "a cat"


def test_captions_in_a_tar_that_cannot_be_used_are_bad_samples(tmp_path: Path) -> None:
    captions = [
        (b'{"caption": "a happy dog \\ud83d"}', "half a character"),
        (b'{"caption": "a\\u0000b"}', "holds NUL"),
        (b'{"caption": "a", "caption": "b"}', "'caption' stands there twice"),
        (b'["a"]', "missing, empty or no text"),
        (b"[" * 100_000, "nested too deeply"),
    ]
    rows = [[(f"{n}.png", image(n)), (f"{n}.json", data)] for n, (data, _) in enumerate(captions)]
    samples = open_webdataset(str(write_tar(tmp_path / "a.tar", [member for row in rows for member in row])))
    for index, (_, reason) in enumerate(captions):
        with pytest.raises(BadSampleError, match=reason):
            samples.caption(index)


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a\nb.png", image(1)), ("\udcff.png", image(2))], format=tarfile.GNU_FORMAT)
    samples = WebdatasetSamples([path])
    assert [samples.name(n) for n in range(2)] == [rf"{path}:a\nb", rf"{path}:\udcff"]


def test_pointers_and_pages_in_the_place_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=r"a\.tar: is a Git LFS pointer, .*`git lfs pull`"):
        open_webdataset(str(path))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text("<html>")
    with pytest.raises(DataError, match=r"captions_val2014\.json: is a web page"):
        open_coco(tmp_path)


def test_names_that_no_file_in_the_folder_can_have_are_bad_samples(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for place in ("images/1.png", "../outside.png"):
        (folder / place).write_bytes(image(1))
    (folder / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    outside = f"{tmp_path}/outside.png"
    names = ["images/1.png", "images/\0.png", "../outside.png", "images/../../outside.png", outside, "\ud800.png"]
    rows = [{"file_name": name, "caption": "a cat"} for name in [*names, f"{folder}/images/1.png", "images/link.png"]]
    (folder / "captions.json").write_text(json.dumps(rows))
    samples = open_folder(folder)
    for index, reason in enumerate(["", "no file can have", *["lies outside"] * 3, "no file can have"]):
        if reason:
            with pytest.raises(BadSampleError, match=reason) as caught:
                samples.image(index)
            assert str(caught.value).isprintable()
    assert samples.image(0) == samples.image(6) == samples.image(7) == image(1)


@pytest.mark.parametrize(
    ("images", "notes", "message"),
    [
        ([(1, "a"), (2, "b"), (1, "c")], [(1, 1), (2, 2)], "image id 1 stands there twice"),
        ([(1, "a"), ("1", "b")], [(1, 1)], "image id 1 stands there twice"),
        ([(1, "a"), (2, "b")], [(1, 7), (2, 7)], "annotation id 7 stands there twice"),
        ([(1.5, "a")], [(1, 1)], "is no COCO captions file"),
        ([(True, "a")], [(1, 1)], "is no COCO captions file"),
        ([(float("inf"), "a")], [(1, 1)], "is no COCO captions file"),
    ],
)
def test_coco_ids_are_whole_numbers_that_stand_there_once(
    tmp_path: Path, images: list, notes: list, message: str
) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    content = {
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [{"image_id": number, "id": note, "caption": "a cat"} for number, note in notes],
    }
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        open_coco(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_image_of_more_pixels_than_are_asked_for_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(image(0))  # 20 x 16
    samples = FileSamples(tmp_path, ["0.png"], ["a cat"])
    assert SampleReader(samples, 8, max_pixels=320).read(0)[1] == "a cat"
    with pytest.raises(BadSampleError, match="has 20 x 16 pixels, more than 319"):
        SampleReader(samples, 8, max_pixels=319).read(0)
    with pytest.raises(DataError, match="1 of 1 samples cannot be used"):
        FileDataset(samples, 8, max_image_pixels=319).real_images(["a cat"], 0)


@pytest.mark.parametrize(
    ("number", "header"),
    [
        (1, {"GNU.sparse.map": "0,z", "GNU.sparse.size": "10"}),
        (1, {"GNU.sparse.size": "ten"}),
        (2, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}),
    ],
)
def test_damaged_headers_of_a_tar_are_one_line(tmp_path: Path, number: int, header: dict[str, str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for place, (name, data) in enumerate(members(range(2))):
            entry = tarfile.TarInfo(name)
            entry.size, entry.pax_headers = len(data), header if place == number else {}
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(DataError, match=r"a\.tar: cannot be read as a tar \(.*\); give a whole") as caught:
        open_webdataset(str(tmp_path / "a.tar"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("size", [b"\x80" + b"\x7f" * 11, b"\xff" * 8 + (2**32 - 1024).to_bytes(4, "big")])
def test_a_member_of_an_impossible_size_is_one_line(tmp_path: Path, size: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", members(range(2)), format=tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: cannot be read as a tar"):
        open_webdataset(str(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("name", ["00000.txt", "00001.png"])
def test_a_link_in_a_tar_is_never_passed_over_for_another_caption(tmp_path: Path, kind: bytes, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for member, data in members(range(2)):
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            if member == name:
                entry.type, entry.linkname, entry.size = kind, "00000.png", 0
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(DataError, match=rf"a\.tar: {name} is a link to 00000\.png; write the tar again"):
        open_webdataset(str(tmp_path / "a.tar"))


def test_what_is_no_file_in_a_folder_is_a_bad_sample(tmp_path: Path) -> None:
    """Nobody may write into a FIFO, and a device has no end."""
    os.mkfifo(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to("/dev/zero")
    (tmp_path / "2.png").mkdir()
    samples = FileSamples(tmp_path, [f"{n}.png" for n in range(3)], ["a"] * 3)
    for index in range(3):
        with pytest.raises(BadSampleError, match="is not a file"):
            samples.image(index)
