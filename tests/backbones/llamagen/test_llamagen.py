"""LlamaGen as a backbone: its own numbers from converted files, text, bfloat16, and what is missing named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from rank_e.backbones.llamagen import DECODER_PREFIXES
from rank_e.backbones.llamagen.backbone import LlamaGenBackbone
from rank_e.backbones.llamagen.policy import PolicyConfig
from rank_e.errors import RankEError
from rank_e.io.files import sha256_of
from rank_e.seeds import generator
from tests.helpers.llamagen_files import Official, assert_same, tiny_policy, tiny_tokenizer
from tests.helpers.t5_files import write_t5

GOLDEN = Path(__file__).parents[2] / "golden"
CPU = torch.device("cpu")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return Official(tmp_path)


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    with safe_open(GOLDEN / f"llamagen_{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    return config, weights, tensors


@torch.no_grad()
def test_a_converted_policy_gives_llamagens_numbers(official: Official) -> None:
    config, weights, data = golden("policy")
    official.convert(policy=official.write("golden.pt", weights), heads=config["n_head"])
    backbone = official.backbone()
    policy = backbone.policy(backbone.policy_weights())
    mask = data["text_mask"].bool()
    torch.testing.assert_close(policy(data["text_embeddings"], mask, data["tokens"]), data["logits"], atol=1e-4, rtol=0)
    none = torch.ones(len(mask), dtype=torch.bool)
    unconditional = policy(data["text_embeddings"], mask, data["tokens"], none)
    torch.testing.assert_close(unconditional, data["unconditional_logits"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_converted_tokenizer_gives_llamagens_numbers(official: Official) -> None:
    config, weights, data = golden("tokenizer")
    policy = PolicyConfig(32, 2, 2, vocab_size=config["codebook_size"], block_size=64, cls_token_num=120, caption_dim=8)
    official.convert(
        policy=official.write("larger.pt", tiny_policy(policy)),
        tokenizer=official.write("golden.pt", weights),
        image_size=config["image_size"],
    )
    backbone = official.backbone()
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    quantized, indices = tokenizer.encode(data["images"])
    assert torch.equal(indices, data["indices"])
    torch.testing.assert_close(tokenizer.decode(quantized), data["reconstructions"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode_tokens(data["tokens"]), data["decoded_tokens"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_backbone_encodes_samples_and_decodes(official: Official) -> None:
    text = write_t5(official.folder / "t5")
    manifest = official.convert(text=text)
    assert manifest["text"] == {"encoder": "t5", "tokens": 120, "folder": "../t5"}
    assert manifest["origin"]["text/spiece.model"]["sha256"] == sha256_of(text / "spiece.model")
    assert manifest["origin"]["text/model.safetensors"]["dtype"] == {"float32": 22}
    backbone = official.backbone()
    prompts = ["a red cube", "a dog and a cat", "a red cube"]
    features, mask = backbone.encode_text(prompts)
    assert features.shape == (3, 120, 32) and torch.equal(features[0], features[2]) and torch.equal(mask[0], mask[2])
    torch.testing.assert_close(features, backbone.text_encoder(prompts)[0])
    assert backbone.truncated(["dog " * 200, "dog"]) == [0]
    policy = backbone.policy(backbone.policy_weights())
    tokens = torch.randint(64, (3, 16), generator=generator(0, "tokens"))
    expected = policy(features, mask, tokens)
    prefix = policy.prefix(features, mask)
    cache = policy.cache(prefix)
    steps = [policy.logits(prefix.hidden)] + [policy.step(tokens[:, i], cache) for i in range(15)]
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, atol=1e-4, rtol=1e-4)
    decoder = {name: tensor * 2 for name, tensor in backbone.decoder_weights().items()}
    images = backbone.tokenizer(decoder).decode_tokens(tokens)
    assert images.shape == (3, 3, 8, 8) and images.isfinite().all()
    assert not torch.equal(images, backbone.tokenizer(backbone.decoder_weights()).decode_tokens(tokens))


@torch.no_grad()
def test_bfloat16_policy_beside_a_float32_tokenizer(official: Official) -> None:
    official.convert(text=write_t5(official.folder / "t5"))
    exact, rough = official.backbone(), official.backbone(torch.bfloat16)
    features, mask = rough.encode_text(["a red cube", "a dog"])
    assert features.dtype == torch.bfloat16
    policy = rough.policy(rough.policy_weights())
    assert {weight.dtype for weight in policy.parameters()} == {torch.bfloat16}
    tokens = torch.randint(64, (2, 16), generator=generator(0, "tokens"))
    logits = policy(features, mask, tokens)
    expected = exact.policy(exact.policy_weights())(*exact.encode_text(["a red cube", "a dog"]), tokens)
    assert logits.dtype == torch.float32 and (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert {p.dtype for p in rough.tokenizer(rough.decoder_weights()).parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in rough.policy_weights().values()} == {torch.float32}


def test_networks_hold_copies_and_train(official: Official) -> None:
    official.convert()
    backbone = official.backbone()
    weights, decoder = backbone.policy_weights(), backbone.decoder_weights()
    policy, tokenizer = backbone.policy(weights), backbone.tokenizer(decoder)
    assert not policy.training and not tokenizer.training
    assert all(weight.requires_grad for weight in (*policy.parameters(), *tokenizer.parameters()))
    with torch.no_grad():
        for weight in (*policy.parameters(), *tokenizer.parameters()):
            weight.add_(1)
    assert_same(weights, tiny_policy())
    assert_same(backbone.policy_weights(), tiny_policy())
    assert_same(decoder, {k: v for k, v in tiny_tokenizer().items() if k.startswith(DECODER_PREFIXES)})


def test_a_backbone_names_what_it_lacks(official: Official) -> None:
    with pytest.raises(RankEError, match=r"base\.json does not exist; run `rank-e convert"):
        official.backbone()
    official.convert()
    backbone = official.backbone()
    with pytest.raises(RankEError, match="names no text encoder; download google/flan-t5-xl"):
        backbone.encode_text(["x"])
    weights = backbone.policy_weights()
    weights["extra"] = weights.pop("norm.weight")
    with pytest.raises(RankEError, match=r"backbone\.policy: .*1 missing: norm\.weight; 1 unexpected: extra"):
        backbone.policy(weights)
    with pytest.raises(RankEError, match=r"backbone\.tokenizer: the decoder does not fit"):
        backbone.tokenizer({})
    wide = write_t5(official.folder / "wide", width=16)
    with pytest.raises(RankEError, match="features of width 16, the policy reads 32"):
        LlamaGenBackbone(official.to, CPU, torch.float32, text_folder=wide).encode_text(["x"])
    official.refuses("text features are 16 wide, the policy reads 32", to=official.folder / "other", text=wide)
    (wide / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 791656\n")
    shutil.copytree(wide, official.folder / "pulled")
    config = json.loads((wide / "config.json").read_text()) | {"d_model": 32}
    (official.folder / "pulled" / "config.json").write_text(json.dumps(config))
    official.refuses(r"spiece\.model is a Git LFS pointer", to=official.folder / "p", text=official.folder / "pulled")
    whole = (official.to / "policy.safetensors").read_bytes()
    (official.to / "policy.safetensors").write_bytes(whole[:-8])
    with pytest.raises(RankEError, match=r"policy\.safetensors has \d+ bytes, not \d+; run `rank-e convert llamagen`"):
        official.backbone()
