"""The embedded world's three CLIPs: real open_clip models at toy size, over the world's closed vocabulary.
 TEXT lends its text tower to the policy; REWARD ranks rollouts; EVALUATOR judges and took no part in
training. They differ in architecture, size and seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rank_e.errors import RankEError
from rank_e.rewards.clip import ClipModel
from rank_e.seeds import generator, seed_for
from rank_e.shapes.captions import COMPOSITIONS, VOCABULARY
from rank_e.torchvision_ops import import_open_clip

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
REWARD = ClipSize(64, {"image_size": 48, "patch_size": 6, "width": 96, "layers": 4, "head_width": 24}, _text(64, 2))
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
    """Prompts -> word ids int64 [N, CONTEXT]: start, words, end, padding. RankEError names an unknown
    word.
    """
    return torch.tensor([_ids(prompt) for prompt in prompts])


class TextEncoder:
    """The text tower's last hidden states as conditioning for the policy."""

    def __init__(self, clip: ClipModel) -> None:
        self.clip = clip

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> (features float32 [N, CONTEXT, C], left-padded with zeros; mask bool [N, CONTEXT])."""
        ids, clip = tokenize(prompts), self.clip
        x = clip.token_embedding(ids) + clip.positional_embedding
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
        valid = ids != PAD
        # Right-padded inside CLIP; the policy wants the padding in front.
        places = (torch.arange(CONTEXT) - (CONTEXT - valid.sum(1, keepdim=True))) % CONTEXT
        mask = valid.gather(1, places)
        return x.gather(1, places[..., None].expand_as(x)) * mask[..., None], mask


def normalise(clip: ClipModel, pictures: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] at the tower's size and statistics, differentiably."""
    visual = clip.visual
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    if pictures.shape[-1] != size:
        pictures = F.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (
        torch.tensor(values, dtype=pictures.dtype).view(3, 1, 1) for values in (visual.image_mean, visual.image_std)
    )
    return (pictures - mean) / std


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric loss on unit features [B, D]; every pair with the same caption (bool [B, B]) is a
    positive.
    """
    logits = scale * image @ text.T
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(
    clip: ClipModel,
    pictures: Tensor,
    captions: list[str],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """Train in place on uint8 pictures [N, 3, H, W] and their captions: AdamW, warm-up and cosine,
    temperature learned.
    """
    from rank_e.shapes.training import cosine_learning_rate, descend

    ids = tokenize(captions)
    parameters = list(clip.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    clip.train()
    for step in range(steps):
        rows = torch.randint(len(pictures), (batch,), generator=generator(seed, "clip", step))
        image, text, scale = clip(normalise(clip, pictures[rows].float() / 255), ids[rows])
        same = (ids[rows][:, None] == ids[rows][None]).all(-1)
        loss = contrastive_loss(image, text, scale, same)
        descend([optimizer], parameters, loss, cosine_learning_rate(step, steps, lr, 50))
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.6052)
        log(step, {"loss": loss.item(), "scale": scale.item()})
    clip.eval()
