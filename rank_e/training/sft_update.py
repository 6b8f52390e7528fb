"""Supervised fine-tuning: the policy learns to predict the tokens of real images from their captions.

The optional start of every arm: next-token cross-entropy with caption dropout, so that the policy can be guided, under
the same prefix mask as sampling and scoring. What a policy reads in place of a dropped caption is trained where it is a
weight: LlamaGen's code keeps its `uncond_embedding` as a buffer that no optimiser sees, but guidance subtracts what the
policy predicts from it, so here it moves with the policy that reads it. Without caption dropout it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rank_e.backbones.protocol import PolicyModel, TokenizerModel
from rank_e.config import SftParams
from rank_e.errors import RankEError
from rank_e.io.pixels import to_signed
from rank_e.seeds import generator
from rank_e.training.ema import ema_update, load_optimizer_tensors, optimizer_tensors
from rank_e.training.masters import Masters, optimizer_groups

# Rows int64 [n] on the CPU -> the captions of those images as the policy reads them: text [n, T, ...], mask [n, T].
Text = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EncodedImages:
    """tokens int64 [N, L] of N real images (on the CPU), and their captions on demand.

    Features of a large text encoder do not fit in memory for a whole data set (15k captions of flan-t5-xl: 15 GB), so
    `text` reads or computes the rows it is asked for.
    """

    tokens: Tensor
    text: Text


def stored_text(text: Tensor, mask: Tensor) -> Text:
    """Captions that are held in memory: text [N, T, ...], mask [N, T]."""
    return lambda rows: (text[rows], mask[rows])


@torch.no_grad()
def encode_images(tokenizer: TokenizerModel, images: Tensor, batch_size: int) -> Tensor:
    """Images [N, 3, S, S] in [0, 1] -> tokens int64 [N, L] on the CPU, batch_size at a time."""
    size = tokenizer.config.image_size
    if images.shape[1:] != (3, size, size):
        raise RankEError(f"sft: images {tuple(images.shape)}; the tokenizer takes [N, 3, {size}, {size}]")
    weight = next(iter(tokenizer.parameters()))
    parts = [tokenizer.encode(to_signed(part.to(weight)))[1].cpu() for part in images.split(batch_size)]
    return torch.cat(parts)


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
    logits = policy.decode(prefix, tokens, checkpointing)
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape).mean(1)


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
    """AdamW on token cross-entropy, with an EMA; every draw is a function of (seed, step).

    Optimiser and EMA work on float32 weights whatever the policy's dtype: in bfloat16 a step of 1e-5 would be lost to
    rounding. The policy then holds their rounded copy.
    """

    def __init__(self, online: PolicyModel, data: EncodedImages, params: SftParams, seed: int) -> None:
        """online is trained in place. RankEError for data that are not this policy's."""
        self.online, self.data, self.params, self.seed = online, data, params, seed
        _check(online, data)
        online.eval()  # no dropout
        self.masters = Masters(online.named_parameters())
        self.average = self.masters.tensors()
        self.optimizer = torch.optim.AdamW(
            optimizer_groups(self.masters, params.weight_decay),
            lr=params.learning_rate,
            betas=(params.betas[0], params.betas[1]),
        )

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Begin at these float32 weights, of which `online` may hold a rounded copy; RankEError names a missing one."""
        self.masters.load(weights)
        self.average = self.masters.tensors()

    def step(self, index: int) -> dict[str, float]:
        """Update `index` (from 0): one AdamW step and, when due, one EMA step.

        Returns loss (nats a token), dropped (share of captions), learning_rate and grad_norm (before clipping).
        RankEError for a loss or gradient that is not finite; the weights are then as before.
        """
        params = self.params
        rows = rows_at(index, len(self.data.tokens), params.batch_size, self.seed)
        draw = generator(self.seed, "sft", "dropout", index)
        dropped = torch.rand(len(rows), generator=draw) < params.caption_dropout
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in torch.arange(len(rows)).split(params.microbatch_size):
            loss = self._losses(rows[part], dropped[part], params.checkpointing).sum() / len(rows)
            loss.backward()
            self.masters.collect()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(self.masters.weights, params.gradient_clip)
        if not bool(norm.isfinite()):
            raise RankEError(f"sft: step {index}: the gradient is not finite (loss {total}); lower sft.learning_rate")
        rate = learning_rate_at(index, params.learning_rate, params.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.masters.publish()
        if (index + 1) % params.ema_every == 0:
            ema_update(self.average, {name: w.detach() for name, w in self.masters.named}, params.ema_decay)
        share = dropped.float().mean().item()
        return {"loss": total, "dropped": share, "learning_rate": rate, "grad_norm": norm.item()}

    def _losses(self, rows: Tensor, dropped: Tensor, checkpointing: bool) -> Tensor:
        device, (text, mask) = self.online.device, self.data.text(rows)
        tokens = self.data.tokens[rows].to(device)
        # Without dropout the text of no caption gets no gradient: a zero one would let weight decay shrink it.
        unread = dropped.to(device) if self.params.caption_dropout > 0 else None
        return sft_loss(self.online, text.to(device), mask.to(device), tokens, unread, checkpointing)

    @torch.no_grad()
    def evaluate(self, data: EncodedImages) -> float:
        """Mean loss of the online policy on all of `data`, captions given, in nats a token."""
        _check(self.online, data)
        device, total = self.online.device, 0.0
        for rows in torch.arange(len(data.tokens)).split(self.params.microbatch_size):
            text, mask = data.text(rows)
            losses = sft_loss(self.online, text.to(device), mask.to(device), data.tokens[rows].to(device))
            total += losses.double().sum().item()
        return total / len(data.tokens)

    def weights(self) -> dict[str, Tensor]:
        """The online policy's trained weights, float32, by name; copies."""
        return self.masters.tensors()

    def optimizer_state(self) -> dict[str, Tensor]:
        return optimizer_tensors(self.optimizer, self.masters.named)

    def state(self) -> dict[str, Tensor]:
        """All that moves, under online/, ema/ and optimizer/: to be saved after any step and loaded before the next."""
        parts = {"online": self.weights(), "ema": self.average, "optimizer": self.optimizer_state()}
        return {f"{part}/{name}": x.clone() for part, tensors in parts.items() for name, x in tensors.items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue where `state` was taken; RankEError names what is missing."""
        try:
            for name, master in self.masters.named:
                master.copy_(tensors[f"online/{name}"])
                self.average[name].copy_(tensors[f"ema/{name}"])
            moments = {
                name.removeprefix("optimizer/"): x for name, x in tensors.items() if name.startswith("optimizer/")
            }
            if moments:  # Adam has none before its first step
                load_optimizer_tensors(self.optimizer, self.masters.named, moments)
        except KeyError as error:
            raise RankEError(f"sft: the saved state lacks {error.args[0]}; remove it and start again") from error
        self.masters.publish()


def _check(policy: PolicyModel, data: EncodedImages) -> None:
    tokens = data.tokens
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != policy.length or tokens.dtype != torch.int64:
        raise RankEError(
            f"sft: tokens {tokens.dtype} {tuple(tokens.shape)}; give int64 [N, {policy.length}] with N >= 1"
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= policy.vocab_size:
        raise RankEError(f"sft: tokens beyond 0 ... {policy.vocab_size - 1}; encode with this policy's own tokenizer")
