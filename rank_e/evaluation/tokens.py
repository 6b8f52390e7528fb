"""How far a policy's tokens have drifted: the latent covariate shift, measured on code usage.

RankE (arXiv 2605.21195) reports D_KL(tokens of the policy || tokens of real images) and the entropy in bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rank_e.errors import RankEError

SMOOTHING = 0.5  # pseudo-counts a code (Jeffreys): a code that real images never use costs much, not infinity


def token_histogram(tokens: Tensor, vocab_size: int) -> Tensor:
    """Counts of each code, float64 [vocab_size], of integer tokens of any shape.

    Counts rather than shares, so that smoothing knows the sample's size. Raises RankEError for a token outside
    [0, vocab_size) or for no tokens.
    """
    flat = tokens.flatten().long()
    if len(flat) == 0 or int(flat.min()) < 0 or int(flat.max()) >= vocab_size:
        span = f"{int(flat.min())} to {int(flat.max())}" if len(flat) else "none"
        raise RankEError(
            f"token_histogram: tokens {span} for a codebook of {vocab_size}; use the tokenizer they come from"
        )
    return torch.bincount(flat, minlength=vocab_size).double()


def token_kl(p: Tensor, q: Tensor, smoothing: float = SMOOTHING) -> float:
    """D_KL(p || q) in nats of two count histograms [V], p the policy's and q the real images', >= 0.

    Both get `smoothing` pseudo-counts a code, then are normalised. The plug-in estimate is biased up by about
    (used codes - 1) / 2 (1 / N_p + 1 / N_q) nats: compare at equal numbers of tokens. RankEError if sizes differ.
    """
    if p.shape != q.shape or p.ndim != 1:
        raise RankEError(f"token_kl: histograms {list(p.shape)} and {list(q.shape)}; use one tokenizer for both")
    a, b = p.double() + smoothing, q.double() + smoothing
    a, b = a / a.sum(), b / b.sum()
    return float(torch.special.xlogy(a, a / b).sum().clamp(min=0))


def entropy_bits(histogram: Tensor) -> float:
    """Entropy of a histogram (counts or shares), in bits, in [0, log2 V]; unsmoothed."""
    shares = histogram.double() / histogram.double().sum()
    return float(-torch.special.xlogy(shares, shares).sum().clamp(max=0) / torch.log(torch.tensor(2.0)).double())
