"""`rank-e convert`: official files in, a base folder out, one line about it; nothing is left after an error."""

from pathlib import Path

import pytest

from pipeline.cli import main
from rank_e.io.checkpoints import read_manifest
from tests.backbones.llamagen.test_llamagen import Official
from tests.helpers import tiny_janus


def test_llamagens_two_files_become_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official = Official(tmp_path)
    files = [str(official.policy), str(official.tokenizer)]
    main(["convert", *files, "--to", str(official.to), "--image-size", "8", "--heads", "2"])
    manifest = read_manifest(official.to, "llamagen-t2i")
    assert manifest["policy"]["block_size"] == 16 and manifest["tokenizer"]["image_size"] == 8
    said = capsys.readouterr().out
    assert said == f"{official.to}: llamagen-t2i, from policy/t2i_tiny.pt, tokenizer/vq_ds2_t2i.pt\n"
    assert {path.name for path in official.to.iterdir()} >= {"base.json", "policy.safetensors", "tokenizer.safetensors"}


def test_a_janus_folder_becomes_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = tiny_janus.save(tmp_path / "hub")
    main(["convert", str(hub), "--to", str(tmp_path / "base")])
    assert read_manifest(tmp_path / "base", "janus")["source"].keys() == {"model.safetensors"}
    assert "janus, from model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{dir}/t2i_tiny.pt", "{dir}/nothing.pt"], "nothing.pt"),
        (["{dir}/vq_ds2_t2i.pt", "{dir}/t2i_tiny.pt"], "vq_ds2_t2i.pt"),
        (["{dir}/a", "{dir}/b", "{dir}/c"], "3 sources"),
        (["{dir}", "--image-size", "8"], "leave them out"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    Official(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(["convert", *(part.format(dir=tmp_path) for part in arguments), "--to", str(tmp_path / "base")])
    text = str(error.value)
    assert text.startswith("rank-e: ") and message in text and "\n" not in text
    assert not (tmp_path / "base").exists()
