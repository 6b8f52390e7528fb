"""A flan-t5 folder at toy size, seeded."""

import json
from pathlib import Path

import sentencepiece
import torch

from rank_e.io.torchvision_ops import declare_torchvision_ops
from rank_e.seeds import seed_for

declare_torchvision_ops()

from transformers import T5Config, T5ForConditionalGeneration  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"


PROMPTS = ["A photo of a RED cube", "two dogs, sitting on a bench by the sea", "", "cat"]


def write_t5(folder: Path, width: int = 32, **saving: object) -> Path:
    """A seeded tiny T5 in flan-t5's layout: config.json, weights of encoder and decoder, spiece.model."""
    folder.mkdir(parents=True)
    captions = json.loads((GOLDEN / "llamagen_captions.json").read_text()).values()
    with (folder / "spiece.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([caption for caption in captions if caption] + [p.lower() for p in PROMPTS]),
            model_writer=model,
            vocab_size=120,
            character_coverage=0.98,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "pad_token": "<pad>"})
    )
    config = T5Config(
        vocab_size=160,
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed_for(0, "t5"))
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():  # larger than at the start, so that attention and position matter
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    model.save_pretrained(folder, **saving)
    return folder
