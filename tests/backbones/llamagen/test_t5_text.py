"""LlamaGen's text: cleaning equal to its own code's, features equal to transformers' right-padded ones, moved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rank_e.backbones.llamagen.text import T5TextEncoder, clean_caption
from rank_e.errors import RankEError
from rank_e.io.checkpoints import CheckpointError
from rank_e.io.torchvision_ops import declare_torchvision_ops
from tests.helpers.t5_files import GOLDEN, PROMPTS, write_t5

declare_torchvision_ops()
from transformers import AutoTokenizer, T5EncoderModel, T5ForConditionalGeneration  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("text") / "flan-t5-tiny")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> T5TextEncoder:
    return T5TextEncoder(folder, CPU, torch.float32)


def test_captions_are_cleaned_as_by_llamagen() -> None:
    golden: dict[str, str] = json.loads((GOLDEN / "llamagen_captions.json").read_text())
    assert len(golden) > 200
    assert {caption: clean_caption(caption) for caption in golden} == golden


@torch.no_grad()
def long_way(folder: Path, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """transformers' own loading and right padding to 120 rows, then each row's valid part moved to the end."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = T5EncoderModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    texts = [clean_caption(prompt) for prompt in prompts]
    batch = tokenizer(texts, max_length=120, padding="max_length", truncation=True, return_tensors="pt")
    assert batch["attention_mask"][:, 0].all(), "the reference must be padded on the right"
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    counts = batch["attention_mask"].sum(-1).tolist()
    rows = [torch.cat([torch.zeros(120 - n, hidden.shape[-1]), row[:n]]) for row, n in zip(hidden, counts, strict=True)]
    return torch.stack(rows), torch.stack([torch.arange(120) >= 120 - n for n in counts])


def test_features_equal_transformers_and_stand_last(folder: Path, encoder: T5TextEncoder) -> None:
    prompts = [*PROMPTS, " ".join(["a dog and a cat"] * 60)]
    features, mask = encoder(prompts)
    expected, expected_mask = long_way(folder, prompts)
    assert features.shape == (5, 120, 32) and mask.dtype == torch.bool
    assert torch.equal(mask, expected_mask)
    assert mask.sum(-1).tolist()[2] == 1 and mask[4].all()
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert not features[~mask].any() and features[mask].any(-1).all()
    assert not features.requires_grad


def test_batches_change_nothing(encoder: T5TextEncoder) -> None:
    together, mask = encoder(PROMPTS)
    one_by_one, its_mask = encoder(PROMPTS, batch_size=1)
    assert torch.equal(mask, its_mask)
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-5)


def test_truncated_captions_are_counted_and_keep_the_end_sign(folder: Path, encoder: T5TextEncoder) -> None:
    words = [" ".join(["dog"] * n) for n in range(60, 125)]
    lengths = [len(encoder.tokenizer(text)["input_ids"]) for text in words]
    assert 120 in lengths and 121 in lengths
    assert encoder.truncated(words) == [i for i, length in enumerate(lengths) if length > 120]
    assert encoder.truncated(PROMPTS) == [] and encoder.truncated([]) == []
    assert [row[-1] for row in encoder._ids(words, truncation=True)] == [encoder.tokenizer.eos_token_id] * len(words)
    short = T5TextEncoder(folder, CPU, torch.float32, tokens=4)
    features, mask = short(["a photo of a dog on a bench"])
    assert features.shape == (1, 4, 32) and mask.all() and short.truncated(["a photo of a dog on a bench"]) == [0]


def test_cleaning_comes_before_the_encoder(encoder: T5TextEncoder) -> None:
    features, _ = encoder(["A RED cube http://a.com/x", "a red cube"])
    torch.testing.assert_close(features[0], features[1])


def test_bfloat16(folder: Path, encoder: T5TextEncoder) -> None:
    features, mask = T5TextEncoder(folder, CPU, torch.bfloat16)(PROMPTS)
    expected, _ = encoder(PROMPTS)
    assert features.dtype == torch.bfloat16
    assert not features[~mask].any()
    assert (features.float() - expected).abs().max() < 0.1 * expected.abs().max()
    with pytest.raises(RankEError, match="float16 is not float32 or bfloat16"):
        T5TextEncoder(folder, CPU, torch.float16)


def test_official_layouts_read_the_same(folder: Path, encoder: T5TextEncoder, tmp_path: Path) -> None:
    expected, _ = encoder(PROMPTS)
    sharded = write_t5(tmp_path / "sharded", max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").is_file() and not (sharded / "model.safetensors").exists()
    binary = tmp_path / "binary"
    shutil.copytree(folder, binary)
    state = T5ForConditionalGeneration.from_pretrained(folder).state_dict()
    for name in ("shared.weight", "decoder.embed_tokens.weight"):  # some files name the table once only
        del state[name]
    (binary / "model.safetensors").unlink()
    torch.save(state, binary / "pytorch_model.bin")
    fast = tmp_path / "fast"
    shutil.copytree(folder, fast)
    encoder.tokenizer.save_pretrained(fast)
    (fast / "spiece.model").unlink()
    assert (fast / "tokenizer.json").is_file()
    for place in (sharded, binary, fast):
        features, _ = T5TextEncoder(place, CPU, torch.float32)(PROMPTS)
        torch.testing.assert_close(features, expected, atol=0, rtol=0)


def test_bad_folders_are_one_line_errors(folder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        shutil.copytree(folder, tmp_path / name)
        return tmp_path / name

    def refused(place: Path, expected: str) -> None:
        with pytest.raises(RankEError, match=expected) as error:
            T5TextEncoder(place, CPU, torch.float32)
        assert "\n" not in str(error.value)

    refused(tmp_path / "nowhere", r"config\.json does not exist")
    place = broken("config")
    (place / "config.json").write_text('{"model_type": "bert"}')
    refused(place, "of model_type 'bert'")
    (place / "config.json").write_text("{")
    refused(place, "is not a T5 config")
    place = broken("sizes")
    sizes = json.loads((place / "config.json").read_text())
    for changes, message in (
        ({"d_ff": "x"}, "is not a T5 config .*'d_ff' expected int"),
        ({"d_kv": -1}, r"config\.json: no model has such sizes .*negative dimension"),
        ({"vocab_size": -1}, r"config\.json: no model has such sizes"),
    ):
        (place / "config.json").write_text(json.dumps(sizes | changes))
        refused(place, message)
    place = broken("tokenizer")
    (place / "spiece.model").write_bytes(b"nonsense")
    refused(place, r"spiece\.model is not a SentencePiece model; download it again")
    (place / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 791656\n")
    refused(place, r"spiece\.model is a Git LFS pointer")
    (place / "spiece.model").unlink()
    refused(place, r"holds no tokenizer\.json or spiece\.model")
    place = broken("weights")
    weights = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(weights[:-100])
    refused(place, "truncated")
    (place / "model.safetensors").unlink()
    refused(place, "holds none of")
    torch.save({"encoder.embed_tokens.weight": torch.zeros(160, 32)}, place / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"20 missing: encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight, .* and 15 more"
    ):
        T5TextEncoder(place, CPU, torch.float32)
    torch.save({"cls": torch.zeros(1)}, place / "pytorch_model.bin")
    refused(place, r"holds no shared\.weight")
