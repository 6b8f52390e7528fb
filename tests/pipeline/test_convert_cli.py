"""`rank-e convert`: official files in, a base folder out, one line about it; nothing is left after an error."""

import os
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from rank_e.backbones import janus, llamagen
from rank_e.io.manifest import read_manifest
from tests.helpers import tiny_janus
from tests.helpers.llamagen_files import Official, tiny_policy, tiny_tokenizer


def test_llamagens_two_files_become_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official = Official(tmp_path)
    files = [str(official.policy), str(official.tokenizer)]
    main(["convert", "llamagen", *files, "--to", str(official.to), "--image-size", "8", "--heads", "2"])
    manifest = read_manifest(official.to, llamagen.FORMAT)
    assert manifest["policy"]["block_size"] == 16 and manifest["tokenizer"]["image_size"] == 8
    said = capsys.readouterr().out
    assert said == f"{official.to}: llamagen-t2i, from policy/t2i_tiny.pt, tokenizer/vq_ds2_t2i.pt\n"
    assert {path.name for path in official.to.iterdir()} >= {"base.json", "policy.safetensors", "tokenizer.safetensors"}


def test_a_janus_folder_becomes_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = tiny_janus.save(tmp_path / "hub")
    main(["convert", "janus", str(hub), "--to", str(tmp_path / "base")])
    assert read_manifest(tmp_path / "base", janus.FORMAT)["origin"].keys() == {"model.safetensors"}
    assert "janus, from model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llamagen", "{dir}/t2i_tiny.pt", "{dir}/nothing.pt"], "nothing.pt"),
        (["llamagen", "{dir}/vq_ds2_t2i.pt", "{dir}/t2i_tiny.pt"], "vq_ds2_t2i.pt"),
        (["llamagen", "{dir}/t2i_tiny.pt", "{dir}/vq_ds2_t2i.pt", "--heads", "2", "--image-size", "0"], "image_size 0"),
        (["llamagen", "{dir}/t2i_tiny.pt", "{dir}/vq_ds2_t2i.pt", "--heads", "2", "--image-size", "9998"], "to 8192; "),
        (
            ["llamagen", "{dir}/t2i_tiny.pt", "{dir}/vq_ds2_t2i.pt", "--heads", "0"],
            "0 heads of width 32; give a number ",
        ),
        (["llamagen", "{dir}/t2i_tiny.pt", "{dir}/vq_ds2_t2i.pt", "--heads", "3"], "whose fourfold divides 32"),
        (["janus", "{dir}"], "config.json does not exist; give a Hugging Face folder of Janus-Pro"),
    ],
)
def test_wrong_files_are_one_line_and_leave_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    Official(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(["convert", *(part.format(dir=tmp_path) for part in arguments), "--to", str(tmp_path / "base")])
    text = str(error.value)
    assert text.startswith("rank-e: ") and message in text and "\n" not in text
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("file", "name", "shape", "message"),
    [
        ("t2i_tiny.pt", "layers.0.feed_forward.w1.weight", (0, 32), "is not a LlamaGen policy: no layers.0.feed_fo"),
        ("t2i_tiny.pt", "tok_embeddings.weight", (64, 0), "is not a LlamaGen policy: no tok_embeddings.weight"),
        ("t2i_tiny.pt", "freqs_cis", (136, 0, 2), "freqs_cis is not LlamaGen's 2D rotary table"),
        ("t2i_tiny.pt", "freqs_cis", (), "freqs_cis is not LlamaGen's 2D rotary table"),
        ("vq_ds2_t2i.pt", "encoder.conv_in.weight", (0, 3, 3, 3), "not a LlamaGen tokenizer: no encoder.conv_in.w"),
        ("vq_ds2_t2i.pt", "encoder.conv_out.weight", (), "is not a LlamaGen tokenizer: no encoder.conv_out.weight"),
        ("vq_ds2_t2i.pt", "quantize.embedding.weight", (64,), "LlamaGen tokenizer: no quantize.embedding.weight"),
        ("vq_ds2_t2i.pt", "encoder.conv_blocks.1.res.0.conv1.weight", (), "vq_ds2_t2i.pt does not fit the model; "),
    ],
)
def test_tensors_of_no_such_shape_are_one_line(
    tmp_path: Path, file: str, name: str, shape: tuple[int, ...], message: str
) -> None:
    official = Official(tmp_path)
    state = tiny_policy() if file == "t2i_tiny.pt" else tiny_tokenizer()
    official.write(file, state | {name: torch.zeros(shape)})
    official.refuses(message)


def test_a_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    """Neither torch nor safetensors opens one."""
    official = Official(tmp_path)
    name = os.fsdecode(b"odd\xff")
    official.refuses("odd.*: its name is not UTF-8; rename it", policy=official.policy.rename(tmp_path / f"{name}.pt"))
    official.refuses("odd.*: its name is not UTF-8; rename it", to=tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes"], "invalid choice: 'shapes' (choose from 'janus', 'llamagen')"),  # trained here, not converted
        (["policy.pt", "vq.pt"], "invalid choice: 'policy.pt'"),
        (["llamagen", "policy.pt"], "the following arguments are required: vq"),
        (["llamagen", "policy.pt", "vq.pt", "more.pt"], "unrecognized arguments: more.pt"),
        (["janus", "folder", "--text", "t5"], "unrecognized arguments: --text t5"),
    ],
)
def test_each_backbone_takes_its_own_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["convert", *arguments, "--to", "base"])
    assert end.value.code == 2 and message in capsys.readouterr().err
