"""LlamaGen checkpoints: every official size and layout converted, exported bit for bit, everything else refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rank_e.backbones.llamagen import DECODER_PREFIXES
from rank_e.backbones.llamagen.convert import (
    check_policy,
    check_tokenizer,
    policy_shape,
    tokenizer_config,
)
from rank_e.backbones.llamagen.export import export_llamagen
from rank_e.backbones.llamagen.policy import LLAMAGEN, Policy, PolicyConfig
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.errors import RankEError
from rank_e.io.checkpoints import read_tensors
from rank_e.io.files import sha256_of
from tests.helpers.llamagen_files import POLICY, TOKENIZER, Official, assert_same, rotary, tiny_policy, tiny_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return Official(tmp_path)


def meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(("image_size", "places"), [(256, 256), (512, 1024)])
def test_official_xl_and_vq16_fit_key_by_key(image_size: int, places: int) -> None:
    policy = meta(json.loads((GOLDEN / "llamagen_xl_t2i_256_state_dict.json").read_text()))
    vq = meta(json.loads((GOLDEN / "llamagen_vq16_state_dict.json").read_text()))
    config = tokenizer_config(vq, "vq", image_size)
    assert config == TokenizerConfig(image_size, 128, (1, 1, 2, 2, 4), 2, 256, 16384, 8) and config.grid**2 == places
    check_tokenizer(vq, config, "vq")
    sizes = policy_shape(policy, "t2i")
    assert (sizes.name, sizes.n_head, sizes.config(places)) == (
        "XL",
        20,
        PolicyConfig(1280, 36, 20, 16384, places, 120, 2048),
    )
    check_policy(policy, sizes.config(places), "t2i")
    del policy["layers.7.attention.wo.weight"]
    with pytest.raises(RankEError, match=r"1 missing: layers\.7\.attention\.wo\.weight$"):
        check_policy(policy, sizes.config(places), "t2i")
    vq["decoder.mid.3.conv.weight"] = vq.pop("decoder.mid.1.q.bias")
    with pytest.raises(RankEError, match=r"1 missing: decoder\.mid\.1\.q\.bias; 1 unexpected: decoder\.mid\.3\.conv"):
        check_tokenizer(vq, config, "vq")


@pytest.mark.parametrize("name", ["B", "L", "XL", "XXL", "3B"])
def test_every_official_size_is_recognised(name: str) -> None:
    config = PolicyConfig(**LLAMAGEN[name], vocab_size=16384, block_size=256, cls_token_num=120, caption_dim=2048)
    with torch.device("meta"):
        weights = Policy(config).state_dict()
    sizes = policy_shape(weights, "t2i")
    assert sizes.name == name and sizes.config(256) == config
    with pytest.raises(RankEError, match=r"number of heads \[\d+, 8\] disagree|number of heads \[8, \d+\] disagree"):
        policy_shape(weights, "t2i", heads=8)


@pytest.mark.parametrize("multipliers", [(1, 1, 2, 2, 4), (1, 2, 2, 4)])
def test_vq16_and_vq8_are_recognised(multipliers: tuple[int, ...]) -> None:
    config = TokenizerConfig(256, 128, multipliers, 2, 256, 16384, 8)
    with torch.device("meta"):
        weights = Tokenizer(config).state_dict()
    assert tokenizer_config(weights, "vq", 256) == config
    check_tokenizer(weights, config, "vq")


def test_a_manifest_tells_where_everything_came_from(official: Official) -> None:
    manifest = official.convert()
    assert manifest["format"] == "llamagen-t2i" and manifest["name"] == "custom"
    entry = manifest["origin"]["policy/t2i_tiny.pt"]
    assert entry == {
        "sha256": sha256_of(official.policy),
        "bytes": official.policy.stat().st_size,
        "keys": len(tiny_policy()),
        "dtype": {"float32": len(tiny_policy())},
    }
    assert manifest["origin"]["tokenizer/vq_ds2_t2i.pt"]["keys"] == len(tiny_tokenizer())
    assert sorted(path.name for path in official.to.iterdir()) == [
        "base.json",
        "policy.safetensors",
        "tokenizer.safetensors",
    ]
    assert_same(load_file(official.to / "policy.safetensors"), tiny_policy())
    assert_same(load_file(official.to / "tokenizer.safetensors"), tiny_tokenizer())
    backbone = official.backbone()
    assert (backbone.policy_config, backbone.tokenizer_config) == (POLICY, TOKENIZER)
    assert (backbone.image_size, backbone.length) == (8, 16)


def test_conversion_is_the_same_bytes_twice_and_for_every_layout(official: Official) -> None:
    official.convert()
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in tiny_policy().items()}
    torch.save(wrapped, official.folder / "bare.pth")
    official.convert(policy=official.folder / "bare.pth", to=official.folder / "again")
    for name in ("policy.safetensors", "tokenizer.safetensors"):
        assert (official.to / name).read_bytes() == (official.folder / "again" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("table", [False, True])
def test_convert_and_export_give_back_every_bit(official: Official, dtype: torch.dtype, table: bool) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in tiny_policy().items()}
    if table:
        weights["freqs_cis"] = rotary(POLICY)
    official.convert(policy=official.write("t2i.pt", weights))
    out = official.folder / "out"
    written = export_llamagen(official.to, out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*written["files"], "export.json"])
    decoder = {name: tensor for name, tensor in tiny_tokenizer().items() if name.startswith(DECODER_PREFIXES)}
    for name, expected in {"t2i_custom_8": weights, "vq_ds2_t2i": tiny_tokenizer(), "decoder": decoder}.items():
        loaded = torch.load(out / f"{name}.pt", weights_only=True)
        assert list(loaded) == ["model"]
        assert_same(loaded["model"], expected)
        assert_same(load_file(out / f"{name}.safetensors"), expected)
        assert written["files"][f"{name}.pt"]["sha256"] == sha256_of(out / f"{name}.pt")
    official.convert(policy=out / "t2i_custom_8.pt", tokenizer=out / "vq_ds2_t2i.pt", to=official.folder / "again")
    for name in ("policy.safetensors", "tokenizer.safetensors"):
        assert (official.to / name).read_bytes() == (official.folder / "again" / name).read_bytes()


def test_trained_weights_are_exported_over_the_base(official: Official) -> None:
    official.convert(policy=official.write("t2i.pt", tiny_policy() | {"freqs_cis": rotary(POLICY)}))
    backbone = official.backbone()
    policy = {name: tensor + 1 for name, tensor in backbone.policy_weights().items()}
    decoder = {name: tensor - 1 for name, tensor in backbone.decoder_weights().items()}
    assert sorted(policy) == sorted(backbone.trained_policy_keys) == sorted(tiny_policy())
    out = official.folder / "out"
    export_llamagen(official.to, out, policy, decoder)
    assert_same(read_tensors(out / "t2i_custom_8.pt"), policy | {"freqs_cis": rotary(POLICY)})
    assert_same(read_tensors(out / "vq_ds2_t2i.pt"), tiny_tokenizer() | decoder)
    assert_same(read_tensors(out / "decoder.safetensors"), decoder)
    with pytest.raises(RankEError, match="the policy to export does not fit"):
        export_llamagen(official.to, official.folder / "bad", policy | {"x": torch.zeros(1)}, decoder)
    with pytest.raises(RankEError, match="the decoder to export does not fit"):
        export_llamagen(official.to, official.folder / "bad", policy, tiny_tokenizer())
    spoilt = policy | {"norm.weight": policy["norm.weight"] * torch.nan}
    with pytest.raises(RankEError, match=r"the policy to export holds values that are not finite in norm\.weight"):
        export_llamagen(official.to, official.folder / "bad", spoilt)
    with pytest.raises(RankEError, match="out exists already"):
        export_llamagen(official.to, out)
    assert not (official.folder / "bad").exists()


def test_the_image_side_is_told_by_name_or_table_and_all_agree(official: Official) -> None:
    official.refuses("do not tell the image's size; give image_size", image_size=None)
    with_table = tiny_policy() | {"freqs_cis": rotary(POLICY)}
    told = official.write("told.pt", with_table)
    assert official.convert(policy=told, image_size=None, heads=None)["tokenizer"]["image_size"] == 8
    shutil.rmtree(official.to)
    official.refuses(
        "wrong image size for the checkpoint: 16 by image_size given, 8 by freqs_cis", policy=told, image_size=16
    )
    named = official.write("t2i_XL_stage1_256.pt", tiny_policy())
    assert official.convert(policy=named, image_size=None)["policy"]["block_size"] == 128**2
    shutil.rmtree(official.to)
    official.refuses(
        "wrong image size .* 512 by image_size given, 256 by the file's name", policy=named, image_size=512
    )
    official.refuses("image_size 0 is not a side", image_size=0)
    official.refuses("image_size 9 must be a multiple of 2", image_size=9)
    turned = tiny_policy() | {"freqs_cis": rotary(POLICY).flip(-1)}
    official.refuses("not LlamaGen's 2D rotary table", policy=official.write("turned.pt", turned))
    official.refuses(r"number of heads \[2, 4\] disagree", policy=told, heads=4)


def test_wrong_files_are_one_line_errors_and_leave_nothing(official: Official) -> None:
    official.refuses("is not a LlamaGen policy: no tok_embeddings.weight", policy=official.tokenizer)
    official.refuses("is not a LlamaGen tokenizer: no encoder.conv_in.weight", tokenizer=official.policy)
    official.refuses("absent.pt does not exist", policy=official.folder / "absent.pt")
    official.refuses(r"2 layers of width 32, none of B \(12 x 768\), .*; give the number of heads", heads=None)
    cut = official.folder / "cut.pt"
    cut.write_bytes(official.policy.read_bytes()[:-1000])
    official.refuses("cut.pt is truncated", policy=cut)
    weights = tiny_policy()
    labelled = weights | {"cls_embedding.embedding_table.weight": torch.zeros(1001, 32)}
    official.refuses("class-conditional", policy=official.write("c2i.pt", labelled))
    partial = {name: tensor for name, tensor in weights.items() if name != "layers.1.ffn_norm.weight"}
    official.refuses(r"1 missing: layers\.1\.ffn_norm\.weight$", policy=official.write("partial.pt", partial))
    spoilt = weights | {"norm.weight": weights["norm.weight"] * torch.nan}
    official.refuses(r"not finite in norm\.weight", policy=official.write("spoilt.pt", spoilt))
    whole = weights | {"norm.weight": torch.ones(32, dtype=torch.int64)}
    official.refuses(r"whole numbers in norm\.weight", policy=official.write("whole.pt", whole))
    counted = tiny_tokenizer() | {"decoder.conv_out.bias": torch.ones(3).short()}
    official.refuses(r"whole numbers in decoder\.conv_out\.bias", tokenizer=official.write("counted.pt", counted))
    thin = weights | {"layers.1.feed_forward.w3.weight": torch.zeros(8, 32)}
    official.refuses(r"w3\.weight \[8, 32\], not \[256, 32\]", policy=official.write("thin.pt", thin))
    small = TokenizerConfig(8, 32, (1, 2), 1, 32, 48, 8)
    codes = official.write("codes.pt", tiny_tokenizer(small))
    official.refuses("vocabulary of 64, .* has 48 codes", tokenizer=codes)
    short = {k: v for k, v in tiny_tokenizer().items() if k != "decoder.conv_blocks.1.res.0.nin_shortcut.bias"}
    official.refuses(
        r"1 missing: decoder\.conv_blocks\.1\.res\.0\.nin_shortcut\.bias", tokenizer=official.write("s.pt", short)
    )
    official.to.mkdir()
    (official.to / "mine").write_text("x")
    official.refuses("base exists already; remove it or name another folder")
