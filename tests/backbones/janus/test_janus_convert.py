"""Janus between the hub's folder and ours: bit for bit both ways, the tokenizer's parity, and every bad input."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from rank_e.backbones.janus.backbone import JanusBackbone
from rank_e.backbones.janus.convert import convert_janus
from rank_e.backbones.janus.export import export_janus
from rank_e.backbones.janus.tokenizer import theirs
from rank_e.errors import RankEError
from rank_e.seeds import generator
from tests.helpers import tiny_janus
from tests.helpers.tiny_janus import JanusForConditionalGeneration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return tiny_janus.save(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def copy(hub, tmp_path):
    """A copy of the hub's folder that may be damaged."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for file in hub.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def load(folder):
    return JanusForConditionalGeneration.from_pretrained(folder, local_files_only=True)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(("dtype", "tied", "shard"), [("bfloat16", False, "60KB"), ("float16", True, "1GB")])
def test_round_trip_is_bit_for_bit(tmp_path, dtype, tied, shard):
    hub = tiny_janus.save(tmp_path / "hub", getattr(torch, dtype), tied, shard)
    convert_janus(hub, tmp_path / "base")
    export_janus(tmp_path / "base", tmp_path / "out")
    weights = {file.name for file in hub.glob("model*")}
    assert len(weights) == 1 if tied else len(weights) > 3
    assert weights == {file.name for file in (tmp_path / "out").glob("model*")}
    for name in weights:
        if name.endswith(".safetensors"):
            assert_same(load_file(hub / name), load_file(tmp_path / "out" / name))
    assert_same(load(hub).state_dict(), load(tmp_path / "out").state_dict())
    for file in hub.iterdir():
        if file.name not in weights:
            assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    # What was loaded in float32 and not trained goes back to the same bits too.
    backbone = JanusBackbone(tmp_path / "base", CPU, torch.float32)
    export_janus(tmp_path / "base", tmp_path / "same", backbone.policy_weights(), backbone.decoder_weights())
    assert_same(load(hub).state_dict(), load(tmp_path / "same").state_dict())


def test_a_torch_checkpoint_converts_to_the_same(hub, copy, tmp_path):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    convert_janus(hub, tmp_path / "one")
    convert_janus(copy, tmp_path / "two")
    for stem in ("policy", "tokenizer", "rest"):
        assert_same(*(load_file(tmp_path / side / f"{stem}.safetensors") for side in ("one", "two")))


def test_the_manifest_says_what_it_came_from(hub, tmp_path):
    manifest = convert_janus(hub, tmp_path / "base")
    written = json.loads((tmp_path / "base" / "base.json").read_text())
    count = len(load_file(hub / "model.safetensors"))
    assert written["origin"]["model.safetensors"]["keys"] == manifest["origin"]["model.safetensors"]["keys"] == count
    assert written["origin"]["model.safetensors"]["dtype"] == {"float32": count}
    assert written["text"] == {"bos": 0, "boi": 4, "pad": 2, "vocab_size": 262, "max_positions": 256}
    assert (written["policy"]["length"], written["policy"]["vocab_size"]) == (16, 64)
    parts = [load_file(tmp_path / "base" / f"{stem}.safetensors") for stem in ("policy", "tokenizer", "rest")]
    assert sum(map(len, parts)) == count
    assert {name.split(".")[1] for name in parts[2]} == {"vision_model", "aligner", "weight"}  # and lm_head.weight


def test_of_a_key_in_two_shards_the_index_decides(tmp_path):
    hub = tiny_janus.save(tmp_path / "hub", shard="40KB")
    convert_janus(hub, tmp_path / "expected")
    first, second = sorted(hub.glob("model-*.safetensors"))[:2]
    key = next(iter(load_file(first)))
    save_file({**load_file(second), key: torch.ones_like(load_file(first)[key])}, second, metadata={"format": "pt"})
    convert_janus(hub, tmp_path / "base")
    for stem in ("policy", "tokenizer", "rest"):
        assert_same(*(load_file(tmp_path / name / f"{stem}.safetensors") for name in ("expected", "base")))


def test_trained_weights_reach_transformers_and_the_rest_stays(hub, tmp_path):
    convert_janus(hub, tmp_path / "base")
    backbone = JanusBackbone(tmp_path / "base", CPU, torch.float32)
    policy = {name: tensor + 1 for name, tensor in backbone.policy_weights().items()}
    decoder = {name: tensor - 1 for name, tensor in backbone.decoder_weights().items()}
    export_janus(tmp_path / "base", tmp_path / "out", policy, decoder)
    before, after = load(hub).state_dict(), load(tmp_path / "out").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"model.{name}" for name in policy} | {f"model.vqmodel.{theirs(name)}" for name in decoder}
    assert torch.equal(after["model.generation_head.proj_out.bias"], policy["generation_head.proj_out.bias"])
    alone = load_file(tmp_path / "out" / "decoder.safetensors")
    assert {f"model.vqmodel.{name}" for name in alone} == {name for name in moved if "vqmodel" in name}
    assert torch.equal(alone["post_quant_conv.bias"], decoder["post_quant_conv.bias"])
    for wrong in ({**policy, "x": policy["generation_head.proj_out.bias"]}, dict(list(policy.items())[1:])):
        with pytest.raises(RankEError, match="does not fit"):
            export_janus(tmp_path / "base", tmp_path / "bad", wrong)
    assert not (tmp_path / "bad").exists()


def test_tokenizer_decodes_as_transformers_and_encodes_as_janus_was_trained(hub, tmp_path):
    convert_janus(hub, tmp_path / "base")
    backbone = JanusBackbone(tmp_path / "base", CPU, torch.bfloat16)
    tokenizer, upstream = backbone.tokenizer(backbone.decoder_weights()), load(hub).model.vqmodel
    assert backbone.image_size == tokenizer.config.image_size == 8
    assert tokenizer.last_layer.dtype == torch.float32
    tokens = torch.randint(64, (5, 16), generator=generator(0, "tokens"))
    images = torch.rand(5, 3, 8, 8, generator=generator(0, "images")) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.decode_tokens(tokens), upstream.decode(tokens), atol=1e-4, rtol=1e-4)
        features = upstream.quant_conv(upstream.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)
        codes = upstream.quantize.embedding.weight
        near = torch.cdist(F.normalize(features), F.normalize(codes)).argmin(-1).view(5, 16)
        assert torch.equal(tokenizer.encode(images)[1], near)
        # Given codes and features of unit length, transformers' own search agrees.
        upstream.quantize.embedding.weight.copy_(F.normalize(codes))
        unit = F.normalize(features).view(5, 4, 4, 8).permute(0, 3, 1, 2)
        assert torch.equal(upstream.quantize(unit)[2].view(5, 16), near)


def change(name, value):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        for key in [key for key in tensors if name in key]:
            tensors.pop(key)
        save_file(tensors | (value or {}), folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def settings(file="config.json", **changes):
    return lambda folder: tiny_janus.edit(folder / file, **changes)


def remove(name):
    return lambda folder: (folder / name).unlink()


def pointer(name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 791656\n"
    return lambda folder: (folder / name).write_text(text)


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


BAD = [
    (remove("tokenizer.json"), r"tokenizer\.json does not exist"),
    (remove("model.safetensors"), r"holds none of model\.safetensors\.index\.json"),
    (truncate("model.safetensors"), r"model\.safetensors is truncated"),
    (truncate("config.json"), r"config\.json is missing or damaged"),
    (truncate("tokenizer.json"), r"tokenizer\.json cannot be read"),
    (truncate("generation_config.json"), r"generation_config\.json is damaged"),
    (pointer("tokenizer.json"), r"tokenizer\.json is a Git LFS pointer"),
    (pointer("tokenizer.model"), r"tokenizer\.model is a Git LFS pointer"),
    (pointer("model.safetensors"), r"model\.safetensors is a Git LFS pointer"),
    (change("generation_head.proj_out.bias", None), r"1 missing: model\.generation_head\.proj_out\.bias"),
    (change("nothing", {"model.new": torch.zeros(1)}), r"1 unexpected: model\.new"),
    (
        change("generation_head.proj_out.bias", {"model.generation_head.proj_out.bias": torch.zeros(7)}),
        r"model\.generation_head\.proj_out\.bias \[7\], not \[32\]",
    ),
    (
        change("generation_head.proj_out.bias", {"model.generation_head.proj_out.bias": torch.ones(32).int()}),
        r"whole numbers in model\.generation_head\.proj_out\.bias",
    ),
    (
        change("generation_head.proj_out.bias", {"model.generation_head.proj_out.bias": torch.full((32,), torch.nan)}),
        r"not finite in model\.generation_head\.proj_out\.bias",
    ),
    (settings(text_config__head_dim=-1), r"config\.json: no model has such sizes .*negative dimension"),
    (settings(text_config__pad_token_id=10**19), r"config\.json: no model has such sizes .*Padding_idx"),
    (settings(model_type="multi_modality"), "DeepSeek's own layout"),
    (settings(model_type="llama"), "model_type 'llama', not 'janus'"),
    (settings(vision_config__num_image_tokens=576), "num_image_tokens 576 does not fit the image size"),
    (settings(vision_config__image_size=16, vision_config__num_image_tokens=64), "64"),
    (settings(vq_config__channel_multiplier=[1, 1, 1]), "image_size 8 is not the VQ model's 16"),
    (settings(vq_config__double_latent=True), "double_latent True"),
    (settings(vq_config__num_embeddings="many"), "not a Janus configuration"),
    (settings("generation_config.json", bos_token_id=5000), "exceed the vocabulary of 262"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(copy, tmp_path, damage, message):
    damage(copy)
    with pytest.raises(RankEError, match=message) as caught:
        convert_janus(copy, tmp_path / "base")
        JanusBackbone(tmp_path / "base", CPU, torch.float32)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["hub"]


def test_special_tokens_come_from_the_tokenizer_without_a_generation_config(copy, tmp_path):
    (copy / "generation_config.json").unlink()
    assert convert_janus(copy, tmp_path / "base")["text"]["boi"] == 4


def test_a_folder_without_a_processor_or_of_another_format_is_refused(copy, tmp_path):
    (copy / "chat_template.jinja").unlink()
    convert_janus(copy, tmp_path / "base")
    with pytest.raises(RankEError, match="no chat template"):
        JanusBackbone(tmp_path / "base", CPU, torch.float32).encode_text(["a"])
    tiny_janus.edit(tmp_path / "base" / "base.json", format="llamagen-t2i")
    with pytest.raises(RankEError, match="of format 'llamagen-t2i', not 'janus'"):
        JanusBackbone(tmp_path / "base", CPU, torch.float32)


def test_weights_of_another_policy_or_decoder_are_refused(hub, tmp_path):
    convert_janus(hub, tmp_path / "base")
    backbone = JanusBackbone(tmp_path / "base", CPU, torch.float32)
    weights = backbone.policy_weights()
    weights.pop("language_model.norm.weight")
    with pytest.raises(RankEError, match=r"1 missing: language_model\.norm\.weight"):
        backbone.policy(weights)
    with pytest.raises(RankEError, match="decoder state"):
        backbone.tokenizer({})
