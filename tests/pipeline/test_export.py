"""`rank-e export`: others load what was trained, bit for bit; the rest is the base's; errors leave nothing behind."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from torch import Tensor

import pipeline.export
from pipeline.cli import main
from pipeline.export import export
from rank_e.backbones.janus.backbone import JanusBackbone
from rank_e.backbones.janus.convert import convert_janus
from rank_e.backbones.janus.tokenizer import theirs
from rank_e.backbones.llamagen import DECODER_PREFIXES
from rank_e.config import Params, load
from rank_e.io.files import sha256_of
from rank_e.io.manifest import files_of, write_manifest
from rank_e.seeds import generator
from rank_e.shapes import FORMAT
from rank_e.shapes.backbone import ShapesBackbone
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.stage import artifact_path
from tests.helpers import tiny_janus
from tests.helpers.llamagen_files import (
    POLICY,
    Official,
    assert_same,
    rotary,
    tiny_policy,
    tiny_tokenizer,
)
from tests.helpers.tiny_janus import JanusForConditionalGeneration

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with params.yaml: the arms frozen and coevolved, one seed 7, rounds 1 and 2."""
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_params(folder: Path, base: str = str(ROOT / "assets/shapes"), seeds: tuple[int, ...] = (7,)) -> None:
    yaml = YAML(typ="safe", pure=True)
    data = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    data["backbone"]["base"], data["seeds"] = base, list(seeds)
    data["rounds"], data["factorial"]["round"] = [{"id": 1, "prev": 0}, {"id": 2, "prev": 1}], 2
    data["evaluated"] = [1, 2]
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(data, file)


def params_of(name: str, base: str) -> Params:
    """params.yaml with another backbone."""
    params = load()
    return params.model_copy(update={"backbone": params.backbone.model_copy(update={"name": name, "base": base})})


def decoder_of(tokenizer: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.float() for name, tensor in tokenizer.items() if name.startswith(DECODER_PREFIXES)}


def moved(tensors: Mapping[str, Tensor], key: str) -> Tensors:
    """Float32 weights a little off, every tensor in its own way: what a training named `key` might leave."""
    draw = generator(0, key)
    return {name: t.float() + 0.01 * torch.randn(t.shape, generator=draw) for name, t in sorted(tensors.items())}


def train(policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor], round_id: int = 2) -> tuple[Tensors, Tensors]:
    """Artifacts of coevolved, seed 7, as the two stages leave them; the EMA weights that they hold."""
    kept = []
    for kind, weights in (("policy", policy), ("decoder", decoder)):
        ema = moved(weights, f"{kind} ema {round_id}")
        with ArtifactWriter(artifact_path(kind, "coevolved", 7, round_id), kind, seed=7, deterministic=True) as out:
            out.tensors("online", moved(weights, f"{kind} online {round_id}"))
            out.tensors("ema", ema)
        kept.append(ema)
    return kept[0], kept[1]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def torch_file(path: Path) -> Tensors:
    """As LlamaGen's own scripts read it."""
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    assert list(loaded) == ["model"]
    return loaded["model"]


def test_llamagens_files_hold_what_was_trained(project: Path) -> None:
    official = Official(project)
    table = {"freqs_cis": rotary(POLICY)}
    official.convert(policy=official.write("t2i.pt", tiny_policy() | table))
    policy, decoder = train(tiny_policy(), decoder_of(tiny_tokenizer()))
    origin = export(params_of("llamagen", "base"), "coevolved", None, 2, "ema", project / "out")
    expected = {"t2i_custom_8": policy | table, "vq_ds2_t2i": tiny_tokenizer() | decoder, "decoder": decoder}
    for name, tensors in expected.items():
        assert_same(torch_file(project / "out" / f"{name}.pt"), tensors)
        assert_same(load_file(project / "out" / f"{name}.safetensors"), tensors)
    assert origin["base"]["origin"].keys() == {"policy/t2i.pt", "tokenizer/vq_ds2_t2i.pt"}

    arguments = ["--to", "again", "--image-size", "8", "--heads", "2"]
    main(["convert", "llamagen", "out/t2i_custom_8.pt", "out/vq_ds2_t2i.pt", *arguments])
    assert_same(load_file("again/policy.safetensors"), policy | table)
    assert_same(load_file("again/tokenizer.safetensors"), tiny_tokenizer() | decoder)


@pytest.mark.parametrize(("dtype", "shard"), [(torch.float32, "1GB"), (torch.bfloat16, "60KB")])
def test_transformers_loads_what_was_trained(project: Path, dtype: torch.dtype, shard: str) -> None:
    hub = tiny_janus.save(project / "hub", dtype, shard=shard)
    convert_janus(hub, project / "base")
    backbone = JanusBackbone(project / "base", CPU, torch.float32)
    policy, decoder = train(backbone.policy_weights(), backbone.decoder_weights())
    origin = export(params_of("janus", "base"), "coevolved", 7, 2, "ema", project / "out")
    trained = {f"model.{name}": tensor.to(dtype) for name, tensor in policy.items()}
    trained |= {f"model.vqmodel.{theirs(name)}": tensor.to(dtype) for name, tensor in decoder.items()}
    before, after = (
        JanusForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=dtype).state_dict()
        for folder in (hub, project / "out")
    )
    assert trained.keys() < before.keys()
    assert_same(after, before | trained)
    assert all(not torch.equal(before[name], after[name]) for name in trained)
    alone = {f"model.vqmodel.{name}": tensor for name, tensor in load_file("out/decoder.safetensors").items()}
    assert_same(alone, {name: tensor for name, tensor in trained.items() if name.startswith("model.vqmodel.")})
    assert origin["base"]["origin"].keys() == {path.name for path in hub.glob("model*.safetensors")}

    main(["convert", "janus", "out", "--to", "again"])
    again = JanusBackbone(Path("again"), CPU, torch.float32)
    assert_same(again.policy_weights(), {name: tensor.to(dtype).float() for name, tensor in policy.items()})
    assert_same(again.decoder_weights(), {name: tensor.to(dtype).float() for name, tensor in decoder.items()})
    assert (project / "again/rest.safetensors").read_bytes() == (project / "base/rest.safetensors").read_bytes()


def shapes_base(folder: Path, dtype: torch.dtype) -> Path:
    """The embedded world's base in another dtype."""
    shutil.copytree(ROOT / "assets/shapes", folder)
    for path in folder.glob("*.safetensors"):
        save_file({name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(path).items()}, path)
    write_manifest(folder, FORMAT, json.loads((folder / "base.json").read_text()))
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_exported_world_is_a_base(project: Path, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    base = shapes_base(project / "base", dtype)
    write_params(project, "base")
    old = load_file(base / "tokenizer.safetensors")
    policy, decoder = train(load_file(base / "policy.safetensors"), decoder_of(old))
    policy, decoder = ({name: t.to(dtype) for name, t in tensors.items()} for tensors in (policy, decoder))
    main(["export", "--arm", "coevolved", "--round", "2", "--to", "out"])
    said = capsys.readouterr().out
    out = project / "out"
    assert_same(load_file(out / "policy.safetensors"), policy)
    assert_same(load_file(out / "tokenizer.safetensors"), old | decoder)
    assert_same(load_file(out / "decoder.safetensors"), decoder)
    for name in ("text", "reward", "evaluator"):
        assert (out / f"{name}.safetensors").read_bytes() == (base / f"{name}.safetensors").read_bytes()
    backbone = ShapesBackbone(out, CPU, torch.float32)
    assert_same(backbone.policy_weights(), {name: tensor.float() for name, tensor in policy.items()})
    assert_same(backbone.decoder_weights(), {name: tensor.float() for name, tensor in decoder.items()})
    tokens = torch.randint(256, (2, 36), generator=generator(0, "tokens"))
    with torch.no_grad():
        features, mask = backbone.encode_text(["a red circle", "a blue square"])
        assert backbone.policy(backbone.policy_weights())(features, mask, tokens).isfinite().all()
        assert backbone.tokenizer(backbone.decoder_weights()).decode_tokens(tokens).shape == (2, 3, 48, 48)
    manifest = json.loads((out / "base.json").read_text())
    assert manifest["policy"] == json.loads((base / "base.json").read_text())["policy"]
    assert "metrics" not in manifest  # they are the old base's
    assert manifest["files"].keys() == {path.name for path in out.glob("*.safetensors")}
    assert manifest["files"].items() <= files_of(out).items()
    for name in ("out: coevolved, seed 7, round 2, ema weights", "policy.safetensors: the policy", "backbone.base"):
        assert name in said

    # The new world is the base of another run, from whose round 0 it comes back as it was.
    write_params(project, "out")
    for kind, weights in (("policy", policy), ("decoder", decoder)):
        with ArtifactWriter(artifact_path(kind, "frozen", 7, 0), kind, seed=7, deterministic=True) as writer:
            writer.tensors("ema", {name: tensor.float() for name, tensor in weights.items()})
    main(["export", "--arm", "frozen", "--seed", "7", "--round", "0", "--to", "next"])
    for path in out.glob("*.safetensors"):
        assert path.read_bytes() == (project / "next" / path.name).read_bytes(), path.name


def test_a_manifest_names_where_the_weights_come_from(project: Path) -> None:
    shutil.copytree(ROOT / "assets/shapes", "base")
    write_params(project, "base")
    train(*shapes_weights())
    main(["export", "--arm", "coevolved", "--round", "2", "--to", "out", "--weights", "online"])
    origin = json.loads((project / "out/manifest.json").read_text())
    files = origin.pop("files")
    assert files.keys() == {path.name for path in Path("out").iterdir()} - {"manifest.json"}
    assert all(entry["sha256"] == sha256_of(Path("out") / name) for name, entry in files.items())
    artifacts = [f"artifacts/coevolved/s7/r2/{kind}" for kind in ("policy", "decoder")]
    assert origin == {
        "format": "shapes",
        "arm": "coevolved",
        "seed": 7,
        "round": 2,
        "weights": "online",
        "artifacts": {path: sha256_of(Path(path) / "manifest.json") for path in artifacts},
        "base": {
            "folder": "base",
            "sha256": sha256_of("base/base.json"),
            "files": json.loads(Path("base/base.json").read_text())["files"],
            "origin": {},
        },
    }
    for path in map(Path, artifacts):
        expected = {name: tensor.half() for name, tensor in load_file(path / "online.safetensors").items()}
        assert_same(load_file(f"out/{path.name}.safetensors"), expected)


def shapes_weights() -> tuple[Tensors, Tensors]:
    folder = ROOT / "assets/shapes"
    return load_file(folder / "policy.safetensors"), decoder_of(load_file(folder / "tokenizer.safetensors"))


def refused(project: Path, *changes: str) -> str:
    """The one line with which an export fails that leaves the project as it was."""
    before = listing(project)
    with pytest.raises(SystemExit) as error:
        main(["export", "--arm", "coevolved", "--round", "2", "--to", "out", *changes])
    assert listing(project) == before
    text = str(error.value.code)
    assert text.startswith("rank-e: ") and "\n" not in text
    return text


def test_an_unknown_cell_is_named(project: Path) -> None:
    assert "arm 'other' is not in params.yaml: it has coevolved, frozen" in refused(project, "--arm", "other")
    assert "round 3 is not in params.yaml: it has 0 (the base) to 2" in refused(project, "--round", "3")
    assert "seed 8 is not in params.yaml: it has 7" in refused(project, "--seed", "8")
    write_params(project, seeds=(3, 7))
    assert "params.yaml has the seeds 3, 7: choose one with --seed" in refused(project)


def test_what_is_not_there_yet_or_damaged_is_named(project: Path) -> None:
    policy, decoder = shapes_weights()
    message = "artifacts/coevolved/s7/r2/policy does not exist yet: run `rank-e run` or `dvc repro`"
    assert message in refused(project)
    train(policy, decoder)
    path = artifact_path("decoder", "coevolved", 7, 2) / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert f"{path} is not what was written" in refused(project)
    shutil.rmtree(path.parent)
    assert "r2/decoder does not exist yet" in refused(project)


def test_a_target_that_exists_is_kept_and_named_before_anything_is_read(project: Path) -> None:
    (project / "out").mkdir()
    (project / "out/mine").touch()
    assert "out exists already; remove it or name another folder" in refused(project)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("base.json", None, "backbone.base: base/base.json does not exist; check it out again"),
        ("base.json", "[]", "backbone.base: base/base.json is not a base's manifest; check it out again"),
        ("base.json", '{"format": "other", "files": {}}', "base/base.json is of format 'other', not 'shapes'"),
        ("reward.safetensors", None, "backbone.base: base/reward.safetensors is missing; check it out again"),
        ("policy.safetensors", None, "base/policy.safetensors is missing"),
    ],
)
def test_a_damaged_base_is_named(project: Path, name: str, content: str | None, message: str) -> None:
    train(*shapes_weights())
    shutil.copytree(ROOT / "assets/shapes", "base")
    write_params(project, "base")
    Path("base", name).unlink() if content is None else Path("base", name).write_text(content)
    assert message in refused(project)


def test_weights_of_another_base_or_beyond_its_dtype_are_refused(project: Path) -> None:
    policy, decoder = shapes_weights()
    large = {name: tensor * 1e6 for name, tensor in decoder.items()}
    train(policy, large)
    assert "the decoder to export holds values that are not finite in" in refused(project)
    train({name: tensor for name, tensor in policy.items() if name != "norm.weight"}, decoder)
    assert "the policy to export does not fit the model" in refused(project)


def test_an_export_that_fails_half_way_leaves_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Official(project).convert()
    train(tiny_policy(), decoder_of(tiny_tokenizer()))
    before, seen = listing(project), []

    def full(value: object, path: Path) -> None:
        seen.extend(listing(path.parent))
        raise OSError("no space")

    monkeypatch.setattr(pipeline.export, "save_json", full)
    with pytest.raises(OSError, match="no space"):
        export(params_of("llamagen", "base"), "coevolved", 7, 2, "ema", Path("out"))
    assert "decoder.pt" in seen and listing(project) == before
