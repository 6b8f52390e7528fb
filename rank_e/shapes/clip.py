"""The embedded world's three CLIPs: real open_clip models at toy size, over the world's closed vocabulary.

TEXT lends its text tower to the policy; REWARD ranks rollouts; EVALUATOR evaluates and took no part in training. They
differ in size, seed and images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rank_e.errors import RankEError
from rank_e.io.pixels import from_bytes
from rank_e.io.torchvision_ops import import_open_clip
from rank_e.rewards.clip import ClipModel, clip_inputs
from rank_e.seeds import generator, seed_for
from rank_e.shapes.captions import CATEGORIES, COMPOSITIONS, VOCABULARY

PAD, START = 0, 1
_IDS = {word: 2 + place for place, word in enumerate(VOCABULARY)}
END = 2 + len(VOCABULARY)  # the highest id: open_clip pools the text at its argmax
CONTEXT = 2 + max(len(caption.split()) for caption in COMPOSITIONS)


@dataclass(frozen=True)
class ClipSize:
    """Sizes of one CLIP: `vision` and `text` are open_clip's tower settings."""

    embed_dim: int
    vision: dict[str, Any]
    text: dict[str, Any]


def _text(width: int, layers: int) -> dict[str, Any]:
    return {
        "context_length": CONTEXT,
        "vocab_size": END + 1,
        "width": width,
        "heads": width // 16,
        "layers": layers,
    }


TEXT = ClipSize(48, {"image_size": 48, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16}, _text(64, 3))
REWARD = ClipSize(64, {"image_size": 64, "layers": (1, 1, 1, 1), "width": 12, "head_width": 64}, _text(64, 2))
EVALUATOR = ClipSize(64, {"image_size": 64, "layers": (1, 1, 1, 1), "width": 10, "head_width": 64}, _text(48, 2))


def build(size: ClipSize, seed: int = 0) -> ClipModel:
    """A fresh open_clip CLIP of this size; its initial weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):  # open_clip initialises from the global generator
        torch.manual_seed(seed_for(seed, "clip"))
        model: ClipModel = import_open_clip().CLIP(embed_dim=size.embed_dim, vision_cfg=size.vision, text_cfg=size.text)
    model.visual.image_mean = model.visual.image_std = (0.5,) * 3  # open_clip's names for a tower's statistics
    return model


@cache
def _ids(prompt: str) -> tuple[int, ...]:
    words = prompt.split()
    unknown = [word for word in words if word not in _IDS]
    if unknown:
        raise RankEError(
            f"prompt {prompt!r}: unknown word {unknown[0]!r}; the shapes world knows {', '.join(VOCABULARY)}"
        )
    if len(words) > CONTEXT - 2:
        raise RankEError(f"prompt {prompt!r}: {len(words)} words, at most {CONTEXT - 2} fit; shorten it")
    return (START, *(_IDS[word] for word in words), END, *[PAD] * (CONTEXT - 2 - len(words)))


def tokenize(prompts: list[str]) -> Tensor:
    """Prompts -> word ids int64 [N, CONTEXT]: start, words, end, padding. RankEError names an unknown word."""
    return torch.tensor([_ids(prompt) for prompt in prompts])


def hidden_states(clip: ClipModel, ids: Tensor) -> Tensor:
    """The text tower's last hidden states [N, CONTEXT, C] of word ids [N, CONTEXT]."""
    x = clip.token_embedding(ids) + clip.positional_embedding
    states: Tensor = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    return states


class WordRecall(nn.Module):
    """How well hidden states tell words: a linear guess of each state's own word, and of all words from the last."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(width, END + 1, generator=generator) * width**-0.5)
        self.all = nn.Parameter(torch.randn(width, CONTEXT * (END + 1), generator=generator) * width**-0.5)

    def forward(self, states: Tensor, ids: Tensor) -> Tensor:
        """states [N, CONTEXT, C] of word ids [N, CONTEXT] -> the sum of the two cross-entropies."""
        last = states[torch.arange(len(ids)), ids.argmax(1)]
        valid = ids != PAD
        own = F.cross_entropy((states @ self.own)[valid], ids[valid])
        every = (last @ self.all).view(len(ids), CONTEXT, END + 1)
        return own + F.cross_entropy(every.flatten(0, 1), ids.flatten())


class TextEncoder:
    """The text tower's last hidden states as conditioning for the policy."""

    def __init__(self, clip: ClipModel) -> None:
        self.clip = clip

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> (features float32 [N, CONTEXT, C], left-padded with zeros; mask bool [N, CONTEXT])."""
        ids = tokenize(prompts).to(self.clip.positional_embedding.device)
        x = hidden_states(self.clip, ids)
        valid = ids != PAD
        # Right-padded inside CLIP; the policy wants the padding in front.
        places = (torch.arange(CONTEXT, device=ids.device) - (CONTEXT - valid.sum(1, keepdim=True))) % CONTEXT
        mask = valid.gather(1, places)
        return x.gather(1, places[..., None].expand_as(x)) * mask[..., None], mask


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric loss on unit features [B, D]; every pair with the same caption (bool [B, B]) is a positive."""
    logits = scale * image @ text.T
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pools_of(captions: list[str]) -> list[Tensor]:
    """What batches are taken from, in turn: int64 rows of one category, all rows, of the next category, all rows..."""
    everything = torch.arange(len(captions))
    category = torch.tensor([CATEGORIES.index(COMPOSITIONS[caption].category) for caption in captions])
    alike = [rows for number in range(len(CATEGORIES)) if len(rows := everything[category == number])]
    return [pool for rows in alike for pool in (rows, everything)]


def train_clip(
    clip: ClipModel,
    images: Tensor,
    captions: list[str],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
    recall_words: bool = False,
) -> None:
    """Train in place on uint8 images [N, 3, H, W] and their captions: AdamW, warm-up and cosine,
    temperature learned.

    Every second batch is of one category: among captions of all kinds a direction or the owner of a colour hardly
    ever decides which caption fits, so it would hardly be learned. `recall_words` adds a loss on the text tower
    alone: every hidden state must name its own word, and the last one all words in order. What the images do not
    teach about a caption is then still there for a policy to read, as it is in a language model's features.
    """
    from rank_e.shapes.training import cosine_learning_rate, descend

    ids = tokenize(captions)
    pools = pools_of(captions)
    width = clip.ln_final.weight.shape[0]
    words = WordRecall(width, generator(seed, "words")) if recall_words else None
    parameters = [*clip.parameters(), *([] if words is None else words.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    clip.train()
    for step in range(steps):
        pool = pools[step % len(pools)]
        rows = pool[torch.randint(len(pool), (batch,), generator=generator(seed, "clip", step))]
        image, text, scale = clip(clip_inputs(clip, from_bytes(images[rows])), ids[rows])
        same = (ids[rows][:, None] == ids[rows][None]).all(-1)
        loss = contrastive_loss(image, text, scale, same)
        if words is not None:
            loss = loss + words(hidden_states(clip, ids[rows]), ids[rows])
        descend([optimizer], parameters, loss, cosine_learning_rate(step, steps, lr, 50))
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.6052)
        log(step, {"loss": loss.item(), "scale": scale.item()})
    clip.eval()
