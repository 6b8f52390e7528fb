"""ImageReward (Xu et al., 2023, arXiv 2304.05977): BLIP's image encoder and cross-attending BERT, and an MLP.

The published package cannot be imported beside today's transformers and timm. Its file `ImageReward.pt` fits, key by
key, timm's VisionTransformer and transformers' BLIP text model, which are used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rank_e.io.foreign import foreign_model
from rank_e.io.torchvision_ops import declare_torchvision_ops
from rank_e.precision import channels_last, float32_island
from rank_e.rewards.aesthetic import build_head
from rank_e.rewards.base import RewardError, check_pairs, check_scores
from rank_e.rewards.preprocessing import OPENAI_MEAN, OPENAI_STD, clip_protocol
from rank_e.rewards.weights import assign, read_weights

SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072  # published: unit variance on its data
PROMPT_LENGTH = 35  # tokens, start and end included
HEAD_WIDTH = 64  # of every attention head of BLIP
SPECIAL_TOKENS = ["[DEC]", "[ENC]"]  # BLIP appends them to BERT's vocabulary
# In the file but not used to score: BLIP's contrastive projections, and a buffer of position numbers.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
PREFIXES = {"vision": "blip.visual_encoder.", "text": "blip.text_encoder.", "head": "mlp."}

Networks = tuple[Any, Any, nn.Sequential]  # image encoder, text encoder, head


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks are numbered after `prefix`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})


def build_networks(what: str, tensors: Mapping[str, Tensor]) -> Networks:
    """(image encoder, text encoder, head) of an ImageReward state dict; every size is read from its shapes.

    Raises RewardError that names `what` and each key that is missing, unexpected or of another shape.
    """
    declare_torchvision_ops()
    from timm.models.vision_transformer import VisionTransformer
    from transformers.models.blip.configuration_blip import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    states: dict[str, dict[str, Tensor]] = {network: {} for network in PREFIXES}
    for key, value in tensors.items():
        network = next((name for name, prefix in PREFIXES.items() if key.startswith(prefix)), None)
        if key.startswith(UNUSED):
            continue
        if network is None:
            raise RewardError(f"{what}: unexpected key {key}; give the published ImageReward.pt")
        states[network][key.removeprefix(PREFIXES[network])] = value
    vision, text = states["vision"], states["text"]
    try:
        width, _, patch, _ = vision["patch_embed.proj.weight"].shape
        inner = vision["blocks.0.mlp.fc1.weight"].shape[0]
        grid = isqrt(vision["pos_embed"].shape[1] - 1)
        words, text_width = text["embeddings.word_embeddings.weight"].shape
        positions = text["embeddings.position_embeddings.weight"].shape[0]
        text_inner = text["encoder.layer.0.intermediate.dense.weight"].shape[0]
    except KeyError as error:
        raise RewardError(f"{what}: no key ending in {error}; give the published ImageReward.pt") from error
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=text_inner,
        num_hidden_layers=_depth(text, "encoder.layer."),
        num_attention_heads=text_width // HEAD_WIDTH,
        max_position_embeddings=positions,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # transformers' way to ask for cross attention; the text still attends both ways
    )
    with foreign_model(what):
        vision_model = VisionTransformer(
            img_size=grid * patch,
            patch_size=patch,
            embed_dim=width,
            depth=_depth(vision, "blocks."),
            num_heads=width // HEAD_WIDTH,
            mlp_ratio=inner / width,
            num_classes=0,
            global_pool="",
            weight_init="skip",
        )
        text_model = BlipTextModel(config, add_pooling_layer=False)
    assign(f"{what}: {PREFIXES['vision']}*", vision_model, vision)
    assign(f"{what}: {PREFIXES['text']}*", text_model, text)
    text_model.embeddings.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)
    return vision_model, text_model, build_head(f"{what}: {PREFIXES['head']}*", states["head"])


def load_word_pieces(path: str | Path, rows: int) -> Any:
    """BERT's uncased word pieces from `vocab.txt` (or a folder that holds it), with BLIP's two special tokens.

    `rows` of the word embedding must be the vocabulary's size and two. Raises RewardError naming the file.
    """
    from tokenizers import BertWordPieceTokenizer

    path = Path(path) / "vocab.txt" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise RewardError(f"tokenizer: {path} does not exist; give the vocab.txt of bert-base-uncased")
    tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    if tokenizer.get_vocab_size() != rows:
        raise RewardError(
            f"tokenizer: {path} has {tokenizer.get_vocab_size()} tokens with {' and '.join(SPECIAL_TOKENS)}, the "
            f"weights {rows}; give the vocab.txt of bert-base-uncased"
        )
    tokenizer.enable_truncation(PROMPT_LENGTH)
    tokenizer.enable_padding(length=PROMPT_LENGTH)
    return tokenizer


class ImageReward:
    """Human preference of an image for its prompt, standardised: about -2 to 2. Prompts over 35 tokens are cut."""

    def __init__(self, networks: Networks, tokenizer: Any, name: str = "imagereward") -> None:
        self.vision, self.text, self.head = networks
        self.tokenizer = tokenizer
        self.name = name

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores float32 [N] of `images` [N, 3, H, W] in [0, 1]; RewardError if one is not finite."""
        check_pairs(self.name, images, prompts)
        size: int = self.vision.patch_embed.img_size[0]
        with float32_island(images.device):  # pixels are prepared in float32
            inputs = clip_protocol(images, size, OPENAI_MEAN, OPENAI_STD)
        features = self.vision(channels_last(inputs))
        encoded = self.tokenizer.encode_batch(prompts)
        ids = torch.tensor([row.ids for row in encoded], device=features.device)
        mask = torch.tensor([row.attention_mask for row in encoded], device=features.device)
        hidden = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=features).last_hidden_state
        with float32_island(images.device):  # the head is small, and its scores are compared
            scores = (self.head(hidden[:, 0].float()).squeeze(-1) - SCORE_MEAN) / SCORE_STD
        return check_scores(self.name, scores)


def imagereward(folder: Path, device: torch.device, *, file: str, tokenizer: str) -> ImageReward:
    """ImageReward with the weights of `file` (the published ImageReward.pt) and BERT's vocabulary; float32, frozen."""
    path = folder / file
    vision, text, head = build_networks(str(path), read_weights(path))
    words = text.get_input_embeddings().num_embeddings
    return ImageReward(
        (vision.to(device), text.to(device), head.to(device)), load_word_pieces(folder / tokenizer, words)
    )
