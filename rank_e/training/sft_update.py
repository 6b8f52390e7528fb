"""Supervised fine-tuning: the policy learns to predict the tokens of real images from their captions.

The optional start of every arm: next-token cross-entropy with caption dropout, so that the policy can be guided, under
the same prefix mask as sampling and scoring. What a policy reads in place of a dropped caption is trained where it is a
weight: LlamaGen's code keeps its `uncond_embedding` as a buffer that no optimiser sees, but guidance subtracts what the
policy predicts from it, so here it moves with the policy that reads it. Without caption dropout it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from rank_e.backbones.protocol import PolicyModel, TokenizerModel
from rank_e.config import SftParams
from rank_e.errors import RankEError
from rank_e.io.pixels import to_signed
from rank_e.sampling.scoring import by_parts
from rank_e.seeds import generator
from rank_e.training.masters import Masters
from rank_e.training.trained_policy import TrainedPolicy
from rank_e.training.update import UpdateState

CaptionReader = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows int64 [n] on the CPU -> the captions of those images as the policy reads them: text [n, T, ...], mask [n, T]."""


@dataclass(frozen=True)
class EncodedImages:
    """tokens int64 [N, L] of N real images (on the CPU), and their captions on demand.

    Features of a large text encoder do not fit in memory for a whole data set (15k captions of flan-t5-xl: 15 GB), so
    `text` reads or computes the rows it is asked for.
    """

    tokens: Tensor
    text: CaptionReader


@torch.no_grad()
def encode_images(tokenizer: TokenizerModel, images: Tensor) -> Tensor:
    """One batch of images [N, 3, S, S] in [0, 1] -> tokens int64 [N, L] on the CPU; RankEError for another size."""
    size = tokenizer.config.image_size
    if images.shape[1:] != (3, size, size):
        raise RankEError(f"sft: images {tuple(images.shape)}; the tokenizer takes [N, 3, {size}, {size}]")
    weight = next(iter(tokenizer.parameters()))
    return tokenizer.encode(to_signed(images.to(weight)))[1].cpu()


def sft_loss(
    policy: PolicyModel,
    text: Tensor,
    mask: Tensor,
    tokens: Tensor,
    unconditional: Tensor | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Cross-entropy of each row's tokens int64 [N, L] after its text, in nats a token: float32 [N]; differentiable.

    unconditional bool [N]: rows that read no caption. All tensors on the policy's device.
    """
    prefix = policy.prefix(text, mask, unconditional, checkpointing)
    return by_parts(policy, policy.hidden(prefix, tokens, checkpointing), tokens, _cross_entropy).mean(1)


def _cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits [N, M, V], tokens [N, M] -> [N, M]."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


def learning_rate_at(step: int, peak: float, warmup: int) -> float:
    """Linear from peak / warmup at step 0 to peak at step warmup - 1, then constant."""
    return peak * min(1.0, (step + 1) / max(1, warmup))


def rows_at(step: int, count: int, batch_size: int, seed: int) -> Tensor:
    """The images of update `step`: int64 [batch_size] below count. Each epoch is a permutation of its own.

    A function of its arguments alone: an update can be repeated or resumed anywhere.
    """
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = [_permutation(count, seed, int(epoch)) for epoch in (places // count).unique()]
    return torch.cat(epochs)[places - int(places[0]) // count * count]


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "sft", "order", epoch))


class SftUpdate:
    """AdamW on token cross-entropy, with an EMA; a step is a function of (seed, index) and of the weights.

    An `Update`. Optimiser and EMA work on float32 weights whatever the policy's dtype: in bfloat16 a step of 1e-5 would
    be lost to rounding. The policy then holds their rounded copy.
    """

    first_step = steps_before = 0

    def __init__(self, online: PolicyModel, data: EncodedImages, params: SftParams, seed: int) -> None:
        """online is trained in place, from its weights on or from those that `load` gives.

        RankEError for data that are not this policy's.
        """
        self.online, self.data, self.params, self.seed = online, data, params, seed
        _check(online, data)
        online.eval()  # no dropout
        masters = Masters(online.named_parameters())
        self.trained = TrainedPolicy("sft", masters, masters.copy(), params)
        self.steps = params.steps

    def step(self, index: int) -> dict[str, float]:
        """Update `index` (from 0): one AdamW step and, when due, one EMA step.

        Returns loss (nats a token), dropped (share of captions), learning_rate and grad_norm (before clipping).
        RankEError for a gradient that is not finite; the weights are then as before.
        """
        params = self.params
        rows = rows_at(index, len(self.data.tokens), params.batch_size, self.seed)
        chances = torch.rand(len(rows), generator=generator(self.seed, "sft", "dropout", index))
        dropped = chances < params.caption_dropout

        def loss_of(microbatch: Tensor) -> Tensor:
            return self._losses(rows[microbatch], dropped[microbatch]).sum() / len(rows)

        loss = self.trained.accumulate(torch.arange(len(rows)), loss_of)
        rate = learning_rate_at(index, params.learning_rate, params.warmup_steps)
        norm = self.trained.step(index, rate)
        return {"loss": loss, "dropped": dropped.float().mean().item(), "learning_rate": rate, "grad_norm": norm}

    def _losses(self, rows: Tensor, dropped: Tensor) -> Tensor:
        """Cross-entropy of the images `rows` [n], the captions `dropped` (bool [n]) unread: float32 [n]."""
        device, (text, mask) = self.online.device, self.data.text(rows)
        tokens = self.data.tokens[rows].to(device)
        # Without dropout the text of no caption gets no gradient: a zero one would let weight decay shrink it.
        unread = dropped.to(device) if self.params.caption_dropout > 0 else None
        return sft_loss(self.online, text.to(device), mask.to(device), tokens, unread, self.params.checkpointing)

    def state(self) -> UpdateState:
        """online, ema and optimizer, float32."""
        return self.trained.state()

    def load(self, state: UpdateState) -> None:
        """Go on from a `state()`; RankEError names what is missing."""
        self.trained.load(state)


def _check(policy: PolicyModel, data: EncodedImages) -> None:
    tokens = data.tokens
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != policy.length or tokens.dtype != torch.int64:
        raise RankEError(
            f"sft: tokens {tokens.dtype} {tuple(tokens.shape)}; give int64 [N, {policy.length}] with N >= 1"
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= policy.vocab_size:
        raise RankEError(f"sft: tokens beyond 0 ... {policy.vocab_size - 1}; encode with this policy's own tokenizer")
