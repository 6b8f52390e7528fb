"""The discriminator's side of the decoder update: hinge loss, LeCam, instance noise, an optimiser of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rank_e.config import DecoderParams
from rank_e.objectives.rank_gan import hinge_discriminator_loss, lecam
from rank_e.precision import Precision, channels_last
from rank_e.training.microbatched import Microbatched
from rank_e.training.optimizer import NamedAdamW

LECAM_DECAY = 0.95


class Discriminator(Protocol):
    """What the decoder update asks of a discriminator; `PatchGAN` and `ProjectedDiscriminator` are two.

    Images [N, 3, H, W] in [0, 1] (unclamped ones pass) -> unbounded logits [N, K, h, w] for a hinge loss, larger
    for real; an image's logits depend on that image alone. `parameters()` and `state_dict()` hold what is trained and
    nothing frozen. `train()` begins a step: until the next one the logits do not depend on how many passes there were.
    """

    def __call__(self, images: Tensor, /) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class DiscriminatorUpdate:
    """Trains a discriminator to tell real images from decoded ones."""

    def __init__(self, discriminator: Discriminator, params: DecoderParams, precision: Precision) -> None:
        """discriminator lies on the precision's device and is trained in place, its weights in float32."""
        self.discriminator, self.params, self.precision = discriminator, params, precision
        named = [(f"discriminator.{name}", weight) for name, weight in discriminator.named_parameters()]
        key = "decoder.discriminator_learning_rate"
        self.optimizer = NamedAdamW(key, named, params.discriminator_learning_rate, params)
        self.lecam_real, self.lecam_fake = (torch.zeros((), device=precision.device) for _ in range(2))

    def noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Instance noise for images [N, 3, H, W], real or fake: else the discriminator keys on the decoder's texture.

        [N, 1, 1, 1] zeros where it is off, since millions of numbers drawn on the CPU would keep a GPU waiting.
        """
        sigma = self.params.instance_noise
        if not sigma:
            return images.new_zeros(len(images), 1, 1, 1)
        return sigma * torch.randn(images.shape, generator=generator).to(images)

    def logits(self, noisy: Tensor) -> Tensor:
        """Logits float32 of images [N, 3, H, W] with their noise."""
        with self.precision.autocast():
            logits = self.discriminator(channels_last(noisy))
        return logits.float()  # a float32 island: hinge, LeCam and Rank-GAN are formed of float32 logits

    def step(self, index: int, reals: Tensor, fakes: Tensor, generator: torch.Generator) -> dict[str, float]:
        """One hinge step on images [N, 3, H, W] in [0, 1] with LeCam regularisation; no gradient reaches the fakes.

        Returns discriminator (the hinge loss) and gap (mean real logit - mean fake logit).
        """
        self.discriminator.train().requires_grad_(True)
        at_once = 2 * self.params.microbatch_size  # fakes of both kinds; an image takes less here than in the decoder
        seen = [
            Microbatched(self.logits, images + self.noise(images, generator), at_once)
            for images in (reals, fakes.detach())
        ]
        real, fake = (logits.joined() for logits in seen)  # all logits, whose means make the loss
        hinge = hinge_discriminator_loss(real, fake)
        self.lecam_real = self.lecam_real.lerp(real.detach().mean(), 1 - LECAM_DECAY)
        self.lecam_fake = self.lecam_fake.lerp(fake.detach().mean(), 1 - LECAM_DECAY)
        loss = hinge + self.params.lecam * lecam(real, fake, self.lecam_real, self.lecam_fake)
        self.optimizer.zero_grad()
        for logits in seen:
            logits.backward(torch.autograd.grad(loss, logits.outputs, retain_graph=True))
        self.optimizer.step(index)
        self.discriminator.requires_grad_(False)
        return {"discriminator": hinge.item(), "gap": (real.mean() - fake.mean()).item()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimiser's moments, under discriminator.NAME, and LeCam's averages: no copies."""
        return self.optimizer.state() | {"lecam.real": self.lecam_real, "lecam.fake": self.lecam_fake}

    def load(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Go on from the discriminator's `state_dict()` and an `optimizer_state()`; KeyError names what is missing."""
        self.discriminator.load_state_dict(weights)
        self.optimizer.load(optimizer)
        self.lecam_real, self.lecam_fake = (
            optimizer[f"lecam.{kind}"].to(self.precision.device).clone() for kind in ("real", "fake")
        )
