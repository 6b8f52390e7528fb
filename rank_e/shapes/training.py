"""Training the embedded world's tokenizer, decoder and policy from nothing: one core, minutes.

The loops choose every batch by a generator seeded by the step, so a base is a function of its parameters.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rank_e.backbones.llamagen.policy import Policy
from rank_e.backbones.llamagen.tokenizer import Tokenizer
from rank_e.seeds import generator
from rank_e.shapes.codebook import CodebookEMA

Log = Callable[[int, dict[str, float]], None]


def cosine_learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak`, then half a cosine down to 2 % of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = torch.tensor((step - warmup) / max(1, steps - warmup) * torch.pi)
    return peak * (0.02 + 0.98 * 0.5 * (1 + torch.cos(progress).item()))


def descend(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], loss: Tensor, rate: float) -> None:
    """One clipped gradient step of all optimizers at learning rate `rate`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()


def train_tokenizer(
    tokenizer: Tokenizer,
    images: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    log: Log,
) -> None:
    """L1 + L2 reconstruction with a commitment loss and an EMA codebook with dead-code restart.

    images: [N, 3, H, W] uint8. The tokenizer is changed in place.
    """
    codebook = CodebookEMA(tokenizer, decay=0.98, seed=seed)
    parameters = [p for name, p in tokenizer.named_parameters() if not name.startswith("quantize.")]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    tokenizer.train()
    for step in range(steps):
        rows = torch.randint(len(images), (batch,), generator=generator(seed, "tokenizer", step))
        batch_images = images[rows].float() / 127.5 - 1
        z = tokenizer.features(batch_images)
        quantized, indices, commitment = codebook.quantize(z)
        reconstruction = tokenizer.decode(quantized)
        error = reconstruction - batch_images
        loss = error.abs().mean() + error.square().mean() + 0.25 * commitment
        descend([optimizer], parameters, loss, cosine_learning_rate(step, steps, learning_rate, 50))
        codebook.update(z.detach(), indices)
        log(
            step,
            {"loss": loss.item(), "l1": error.abs().mean().item() / 2, "codes": indices.unique().numel()},
        )
    tokenizer.eval()


def train_decoder(
    tokenizer: Tokenizer,
    images: Tensor,
    tokens: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    log: Log,
) -> None:
    """L1 + L2 reconstruction by the decoder alone; encoder and codes stay as they are.

    images: [N, 3, H, W] uint8; tokens: int64 [N, L], theirs. The tokenizer is changed in place.
    """
    parameters = [parameter for _, parameter in tokenizer.decoder_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    tokenizer.train()
    for step in range(steps):
        rows = torch.randint(len(images), (batch,), generator=generator(seed, "decoder", step))
        error = tokenizer.decode_tokens(tokens[rows]) - (images[rows].float() / 127.5 - 1)
        loss = error.abs().mean() + error.square().mean()
        descend([optimizer], parameters, loss, cosine_learning_rate(step, steps, learning_rate, 50))
        log(step, {"loss": loss.item(), "l1": error.abs().mean().item() / 2})
    tokenizer.eval()


def train_policy(
    policy: Policy,
    text: Tensor,
    mask: Tensor,
    prompt_rows: Tensor,
    tokens: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    caption_dropout: float,
    seed: int,
    log: Log,
    held_out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Next-token cross-entropy with caption dropout, so that the policy can be guided.

    text [P, T, C] and mask [P, T] hold each distinct caption once; prompt_rows [N] says which caption image i has;
    tokens [N, L]. held_out: (text, mask, tokens) row by row, scored every 200 steps.
    """
    # Muon (Jordan et al., 2024) for the blocks' matrices: the same loss in about half of AdamW's steps here.
    hidden = [p for name, p in policy.named_parameters() if name.startswith("layers.") and p.ndim == 2]
    others = [p for name, p in policy.named_parameters() if not (name.startswith("layers.") and p.ndim == 2)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    parameters = [*hidden, *others]
    policy.train()
    for step in range(steps):
        batch_generator = generator(seed, "policy", step)
        rows = torch.randint(len(tokens), (batch,), generator=batch_generator)
        dropped = torch.rand(batch, generator=batch_generator) < caption_dropout
        captions = prompt_rows[rows]
        logits = policy(text[captions], mask[captions], tokens[rows], unconditional=dropped)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[rows].flatten())
        descend(optimizers, parameters, loss, cosine_learning_rate(step, steps, learning_rate, 100))
        metrics = {"loss": loss.item()}
        if held_out is not None and (step % 200 == 199 or step == steps - 1):
            with torch.no_grad():
                unseen = policy(held_out[0], held_out[1], held_out[2])
            metrics["held_out"] = F.cross_entropy(unseen.flatten(0, 1), held_out[2].flatten()).item()
        log(step, metrics)
    policy.eval()
