"""A tiny seeded Janus in the official format: Hugging Face folder, byte-level tokenizer, chat template."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from rank_e.io.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()

from transformers import (  # noqa: E402
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil  # noqa: E402

from rank_e.seeds import generator  # noqa: E402

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE, BOI, EOI = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
SPECIAL = [BOS, EOS, PAD, IMAGE, BOI, EOI]
TEMPLATE = (
    "{%for message in messages%}{%for part in message['content']%}<|User|>: {{part['text']}}{%endfor%}"
    "{{'\n\n'}}{%endfor%}"
    "{%if add_generation_prompt%}<|Assistant|>:{%endif%}"
)
VOCABULARY = len(SPECIAL) + 256


def config(tied: bool = False) -> JanusConfig:
    return JanusConfig(
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ).to_dict(),
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 2,
            "projection_dim": 32,
            "num_image_tokens": 16,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 64,
            "latent_channels": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
        image_token_id=3,
        tie_word_embeddings=tied,
    )


def model(tied: bool = False) -> JanusForConditionalGeneration:
    """Weights wide enough that greedy choices do not hang on rounding."""
    built = JanusForConditionalGeneration(config(tied)).eval()
    draw = generator(0, "tiny janus")
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5, generator=draw)
            elif "embed" in name or weight.ndim == 1:
                weight.normal_(0.0, 0.5, generator=draw)
            else:
                weight.normal_(0.0, 1.5 * weight[0].numel() ** -0.5, generator=draw)
    settings = built.generation_config
    settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = 0, 1, 2
    settings.guidance_scale = 5
    settings.generation_kwargs = {"boi_token_id": 4}
    return built


def processor() -> JanusProcessor:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI},
    )
    return JanusProcessor(JanusImageProcessorPil(), fast, chat_template=TEMPLATE)


def save(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = False, shard: str = "1GB") -> Path:
    """Write what the hub holds of a Janus: weights in `dtype`, configuration, processor."""
    model(tied).to(dtype).save_pretrained(folder, max_shard_size=shard)
    processor().save_pretrained(folder)
    return folder


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; "a.b" reaches into a section."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *sections, last = key.split("__")
        part = content
        for section in sections:
            part = part[section]
        part[last] = value
    path.write_text(json.dumps(content))
