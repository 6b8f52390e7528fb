"""The embedded world's base, from nothing: three CLIPs, tokenizer, decoder, policy, and what they measure together.

Each function is one training stage: parameters and earlier networks in, weights out. Text encoder, reward and
evaluator differ in seed, size and images, so that what is rewarded is not what evaluates.
"""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor, nn

from rank_e.backbones.llamagen.policy import Policy, PolicyConfig
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.io.pixels import to_bytes
from rank_e.seeds import generator
from rank_e.shapes import clip, world
from rank_e.shapes.training import Log, train_decoder, train_policy, train_tokenizer

CLIPS = {"text": clip.TEXT, "reward": clip.REWARD, "evaluator": clip.EVALUATOR}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingParams(_Section):
    """Length and pace of one training: steps, batch (images a step), peak learning rate, seed, images rendered."""

    steps: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat
    seed: int
    images: PositiveInt


class TokenizerSize(_Section):
    """Arguments of TokenizerConfig."""

    image_size: PositiveInt
    channels: PositiveInt
    channel_multipliers: tuple[int, ...]
    residual_blocks: PositiveInt
    z_channels: PositiveInt
    codebook_size: PositiveInt
    codebook_dim: PositiveInt
    norm_groups: PositiveInt


class PolicySize(_Section):
    """Arguments of PolicyConfig that the text encoder and the tokenizer do not decide."""

    dim: PositiveInt
    n_layer: PositiveInt
    n_head: PositiveInt
    multiple_of: PositiveInt
    caption_dropout: float


class BaseParams(_Section):
    """base/params.yaml."""

    threads: PositiveInt
    text: TrainingParams
    reward: TrainingParams
    evaluator: TrainingParams
    tokenizer: TrainingParams
    tokenizer_size: TokenizerSize
    decoder: TrainingParams
    policy: TrainingParams
    policy_size: PolicySize


def real_set(split: str, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """`count` real images [N, 3, H, W] uint8 of a split and their captions."""
    prompts = world.prompts(split, count, seed)
    images = world.images([world.scene_for(prompt, seed) for prompt in prompts])
    return to_bytes(images), [prompt.text for prompt in prompts]


def train_base_clip(name: str, params: TrainingParams, log: Log) -> nn.Module:
    """Contrastive training of the CLIP called `name` ("text", "reward" or "evaluator").

    Text encoder and evaluator see the compositions of every split, as their published counterparts know all words'
    combinations: the one must encode them, the other must recognise them. Reward and policy see training ones alone.
    """
    unseen = {} if name == "reward" else {"held_out": params.images * 2 // 9, "validation": params.images // 9}
    counts = {"train": params.images - sum(unseen.values())} | unseen
    sets = [real_set(split, count, params.seed) for split, count in counts.items()]
    images, captions = torch.cat([drawn for drawn, _ in sets]), [text for _, texts in sets for text in texts]
    model = clip.build(CLIPS[name], seed=params.seed)
    clip.train_clip(
        model,
        images,
        captions,
        steps=params.steps,
        batch=params.batch,
        lr=params.learning_rate,
        seed=params.seed,
        log=log,
        recall_words=name == "text",
    )
    return model


def train_base_tokenizer(params: TrainingParams, size: TokenizerSize, log: Log) -> Tokenizer:
    """Reconstruction training of the tokenizer."""
    images, _ = real_set("train", params.images, params.seed)
    tokenizer = Tokenizer(TokenizerConfig(**size.model_dump())).initialise(generator(params.seed, "tok"))
    train_tokenizer(
        tokenizer,
        images,
        steps=params.steps,
        batch=params.batch,
        learning_rate=params.learning_rate,
        seed=params.seed,
        log=log,
    )
    return tokenizer


def train_base_decoder(params: TrainingParams, tokenizer: Tokenizer, log: Log) -> Tokenizer:
    """The same encoder and codes with a decoder that is trained anew, and for less long.

    The decoder that the codes were learned with reconstructs this world almost without a flaw, and leaves nothing for
    the decoder's update to mend.
    """
    images, _ = real_set("train", params.images, params.seed)
    tokens = encode_images(tokenizer, images)
    fresh = Tokenizer(tokenizer.config).initialise(generator(params.seed, "decoder"))
    tokenizer.load_decoder_state(fresh.decoder_state())
    train_decoder(
        tokenizer,
        images,
        tokens,
        steps=params.steps,
        batch=params.batch,
        learning_rate=params.learning_rate,
        seed=params.seed,
        log=log,
    )
    return tokenizer


@torch.no_grad()
def encode_images(tokenizer: Tokenizer, images: Tensor, batch: int = 256) -> Tensor:
    """uint8 images [N, 3, H, W] -> tokens int64 [N, L]."""
    return torch.cat([tokenizer.encode(part.float() / 127.5 - 1)[1] for part in images.split(batch)])


def policy_config(size: PolicySize, text: clip.TextEncoder, tokenizer: Tokenizer) -> PolicyConfig:
    """The policy that fits this text encoder and this tokenizer."""
    features, mask = text(["a red circle"])
    return PolicyConfig(
        **size.model_dump(exclude={"caption_dropout"}),
        vocab_size=tokenizer.config.codebook_size,
        block_size=tokenizer.config.grid**2,
        cls_token_num=mask.shape[1],
        caption_dim=features.shape[2],
    )


def real_tokens(tokenizer: Tokenizer, split: str, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Tokens int64 [count, L] of real images of a split and their captions, rendered 1000 at a time to save memory."""
    prompts = world.prompts(split, count, seed)
    encoded = []
    for start in range(0, count, 1000):
        images = world.images([world.scene_for(prompt, seed) for prompt in prompts[start : start + 1000]])
        encoded.append(encode_images(tokenizer, to_bytes(images)))
    return torch.cat(encoded), [prompt.text for prompt in prompts]


def train_base_policy(
    params: TrainingParams, size: PolicySize, text: clip.TextEncoder, tokenizer: Tokenizer, log: Log
) -> Policy:
    """Next-token training of the policy on the tokenizer's codes of real images."""
    tokens, captions = real_tokens(tokenizer, "train", params.images, params.seed)
    distinct = sorted(set(captions))
    with torch.no_grad():
        features, mask = text(distinct)
    place = {caption: row for row, caption in enumerate(distinct)}
    policy = Policy(policy_config(size, text, tokenizer)).initialise(generator(params.seed, "policy"))
    train_policy(
        policy,
        features,
        mask,
        torch.tensor([place[caption] for caption in captions]),
        tokens,
        steps=params.steps,
        batch=params.batch,
        learning_rate=params.learning_rate,
        caption_dropout=size.caption_dropout,
        seed=params.seed,
        log=log,
        held_out=_held_out(params.seed, text, tokenizer),
    )
    return policy


@torch.no_grad()
def _held_out(seed: int, text: clip.TextEncoder, tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
    tokens, captions = real_tokens(tokenizer, "held_out", 512, seed)
    features, mask = text(captions)
    return features, mask, tokens


def load_params(path: str | Path) -> BaseParams:
    """Read base/params.yaml."""
    import yaml

    return BaseParams.model_validate(yaml.safe_load(Path(path).read_text()))
