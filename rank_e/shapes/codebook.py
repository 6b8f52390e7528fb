"""Learning a codebook by exponential moving averages, for tokenizers trained from nothing."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rank_e.backbones.llamagen.tokenizer import Tokenizer
from rank_e.seeds import generator


class CodebookEMA:
    """Moves each code towards the mean of the features it serves, and restarts codes that serve none.

    Codes [V, C] lie on the unit sphere, as the tokenizer looks them up. The straight-through estimator and the
    commitment loss follow VQ-VAE (arXiv 1711.00937), appendix A.1; the restart follows Jukebox (arXiv 2005.00341).
    """

    def __init__(self, tokenizer: Tokenizer, decay: float, seed: int, dead_below: float = 0.1) -> None:
        """dead_below: a code restarts when its running share of the uniform usage falls below this."""
        self.tokenizer, self.decay, self.seed, self.dead_below = tokenizer, decay, seed, dead_below
        codes = tokenizer.codes().detach()
        self.share = torch.ones(len(codes))
        self.total = codes.clone()
        self.steps = 0

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features z [N, C, h, w] -> (straight-through codes, indices [N, h * w], commitment loss, a scalar)."""
        nearest, indices = self.tokenizer.nearest(z)
        nearest = nearest.detach()
        return z + (nearest - z).detach(), indices, (z - nearest).square().mean()

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor) -> None:
        """Fold one batch into the averages and write the codes; call once a step."""
        flat, index = z.permute(0, 2, 3, 1).flatten(0, 2), indices.flatten()
        uniform = len(flat) / len(self.share)
        used = torch.zeros_like(self.share).index_add_(0, index, torch.ones(len(flat))) / uniform
        summed = torch.zeros_like(self.total).index_add_(0, index, flat) / uniform
        self.share.lerp_(used, 1 - self.decay)
        self.total.lerp_(summed, 1 - self.decay)
        dead = (self.share < self.dead_below).nonzero().squeeze(1)
        if len(dead):
            restart = generator(self.seed, "codebook", self.steps)
            rows = torch.randint(len(flat), (len(dead),), generator=restart)
            self.total[dead], self.share[dead] = flat[rows], 1.0
        self.tokenizer.quantize.embedding.weight.copy_(F.normalize(self.total, dim=-1))
        self.steps += 1
