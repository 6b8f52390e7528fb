"""`rank-e convert`: official files in, a base folder out, one line about it; nothing is left after an error."""

from pathlib import Path

import pytest

from pipeline.cli import main
from rank_e.backbones import janus, llamagen
from rank_e.io.manifest import read_manifest
from tests.helpers import tiny_janus
from tests.helpers.llamagen_files import Official


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
        (["llamagen", "{dir}/t2i_tiny.pt", "{dir}/vq_ds2_t2i.pt", "--heads", "0"], "0 heads; give 1 or more"),
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
