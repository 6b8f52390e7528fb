"""A backbone is one folder and one line of the registry: a toy one, registered here, goes through every command."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import cli
from pipeline.preflight import estimate
from rank_e.backbones import BACKBONES, Paths, load_backbone
from rank_e.backbones.info import backbone_info
from rank_e.backbones.protocol import PolicyModel, TokenizerModel
from rank_e.backbones.sizes import published, read_base
from rank_e.config import load
from rank_e.config.profiles import resolve
from rank_e.errors import RankEError
from rank_e.io.checkpoints import read_tensors
from rank_e.io.manifest import seal_manifest
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import sample
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.stage import artifact_path
from tests.helpers.toy.backbone import write_checkpoint

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose params name the toy; its official file lies in toy.safetensors."""
    line = Paths("tests.helpers.toy.backbone:ToyBackbone", "tests.helpers.toy.sizes:ToyInfo")
    monkeypatch.setitem(BACKBONES, "toy", line)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    for name in ("rank_e", "stages", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    params = yaml.safe_load(resolve(ROOT / "profiles/tiny.yaml"))
    params["backbone"] = {"name": "toy", "base": "toy-1"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems() -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(["validate"])
    return str(end.value.code)


def test_a_toy_backbone_goes_through_every_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "backbone.base: toy-1/base.json does not exist; run `rank-e convert toy`" in problems()
    assert estimate.sizes_of(load()) == published("toy", Path("models/toy-1"))  # known before it is there
    weights = write_checkpoint(Path("toy.safetensors"))
    cli.main(["convert", "toy", "toy.safetensors", "--to", "toy-1"])
    assert capsys.readouterr().out == "toy-1: toy, from toy.safetensors\n"

    cli.main(["validate"])
    said = capsys.readouterr().out
    sizes = estimate.sizes_of(load())
    assert sizes == published("toy", Path("toy-1")) and read_base("toy", Path("toy-1")) == (sizes, [])
    assert f"policy {estimate.gigabytes(estimate.disk(sizes, load())['policy'])}" in said

    backbone = load_backbone("toy", "toy-1", CPU, torch.float32)
    policy, tokenizer = backbone.policy(backbone.policy_weights()), backbone.tokenizer(backbone.decoder_weights())
    assert isinstance(policy, PolicyModel) and isinstance(tokenizer, TokenizerModel)
    text, mask = backbone.encode_text(["a cat", "two dogs"])
    tokens = sample(policy, text, mask, [1, 2], SamplingConfig(guidance=2.0), batch_size=2).tokens
    with torch.no_grad():
        assert tokenizer.decode_tokens(tokens).shape == (2, 3, 8, 8)

    trained = {
        "policy": {name: tensor + 1 for name, tensor in backbone.policy_weights().items()},
        "decoder": {name: tensor - 1 for name, tensor in backbone.decoder_weights().items()},
    }
    for kind, tensors in trained.items():
        with ArtifactWriter(artifact_path(kind, "coevolved", 0, 1), kind, seed=0, deterministic=True) as out:
            out.tensors("ema", tensors)
    cli.main(["export", "--arm", "coevolved", "--round", "1", "--to", "out"])
    assert "  toy.safetensors: everything\n" in capsys.readouterr().out
    origin = json.loads(Path("out/manifest.json").read_text())
    assert origin["format"] == "toy" and origin["base"]["origin"].keys() == {"toy.safetensors"}
    written = read_tensors("out/toy.safetensors")
    assert written.keys() == weights.keys()
    for name, tensor in weights.items():
        moved = 1 if name.startswith("policy.") else -1 if name.startswith("vq.decoder.") else 0
        assert torch.equal(written[name], tensor + moved), name

    # Its own arguments reach its own converter.
    cli.main(["convert", "toy", "out/toy.safetensors", "--negate", "--to", "again"])
    again = load_backbone("toy", "again", CPU, torch.float32)
    assert torch.equal(again.policy_weights()["head.bias"], -trained["policy"]["head.bias"])


def test_what_a_toy_base_lacks_is_listed_at_once(project: Path) -> None:
    write_checkpoint(Path("toy.safetensors"))
    cli.main(["convert", "toy", "toy.safetensors", "--to", "toy-1"])
    manifest = json.loads(Path("toy-1/base.json").read_text())
    manifest["policy"]["vocab"], manifest["tokenizer"]["image_size"] = 40, 10
    seal_manifest(Path("toy-1"), manifest)
    Path("toy-1/words.txt").unlink()
    found = problems()
    for part in (
        "16 tokens an image, but 10 pixels give 25",
        "the policy's vocabulary of 40 is not the tokenizer's codebook of 32",
        "image.weight has 32 rows, base.json says 40",
        "10 pixels, toy-1 has 8",
        "toy-1/words.txt is missing; run `rank-e convert toy`",
        "toy-1/words.txt holds no words; find some",
    ):
        assert part in found
    assert len(found.splitlines()) == 6


def test_an_unknown_backbone_is_one_line_wherever_it_is_asked_for(project: Path) -> None:
    message = "backbone.name: unknown backbone 'jonas'; give one of janus, llamagen, shapes, toy; did you mean janus?"
    for ask in (backbone_info, lambda name: load_backbone(name, "base", CPU, torch.float32)):
        with pytest.raises(RankEError) as error:
            ask("jonas")
        assert str(error.value) == message
    text = Path("params.yaml").read_text().replace("name: toy", "name: jonas")
    Path("params.yaml").write_text(text)
    assert problems() == f"rank-e: {message}"


def test_nothing_of_any_backbone_but_its_networks_needs_torch() -> None:
    """The infos, the helps, and the estimates of the published bases, in a process of their own."""
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "from pipeline.preflight.estimate import main as estimate\n"
        "from rank_e.backbones import BACKBONES\n"
        "from rank_e.backbones.info import backbone_info\n"
        "assert all(backbone_info(name).exported for name in BACKBONES)\n"
        "for words in (['--help'], ['convert', '--help'], ['convert', 'janus', '--help']):\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "estimate(['profiles/llamagen-xl-clip.yaml', 'profiles/janus-pro-1b-clip.yaml'])\n"
        "print(sorted({'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_backbone_is_known_by_name_outside_its_folder() -> None:
    names = BACKBONES.keys() - {"shapes"}  # which is a kind of data too, and what tensors have
    for room in ("pipeline", "rank_e/io", "rank_e/config"):
        for path in (ROOT / room).rglob("*.py"):
            assert not [name for name in names if name in path.read_text().lower()], path
