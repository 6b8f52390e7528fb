"""The discriminator of realism in the feature spaces of two frozen networks; only its heads are trained.

After Projected GAN (arXiv 2111.01007) for EfficientNet: fixed random mixing of channels and of scales, so that no
head can live on a few channels. After StyleGAN-T (arXiv 2301.09515) for the vision transformer: heads directly on its
patches at four depths. The frozen networks pass gradients on to the image (the released RankE runs them
under no_grad, so that its projected discriminator teaches the decoder nothing).
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import ParametrizationList, cached

from rank_e import seeds
from rank_e.errors import RankEError
from rank_e.io.checkpoints import check_finite, check_shapes, read_tensors, shapes_of
from rank_e.io.json_text import parse_json
from rank_e.io.resize import resize
from rank_e.precision import GroupNorm, channels_last, float32_island

STRIDE = 32  # pixels a logit stands for, whatever feature map its head reads
GROUPS = 8  # of every GroupNorm
MIXED = 64  # channels of every mixed EfficientNet map
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEPTHS = 4  # maps of each frozen network
POWER_ITERATIONS = 15  # settle the spectral norm's vectors at initialisation; training adds one a step


class DinoFeatures(nn.Module):
    """Patch maps of a DINOv3 ViT behind 1/4, 2/4, 3/4 and 4/4 of its blocks, each through the final norm."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels, self.stride = int(backbone.config.hidden_size), int(backbone.config.patch_size)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [N, 3, S, S] in [0, 1] -> four maps [N, channels, S / stride, S / stride]."""
        return list(self.backbone((images - self.mean) / self.std).feature_maps)


class EfficientNetFeatures(nn.Module):
    """The last four of an EfficientNet's five resolutions: strides 4, 8, 16 and 32."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        stages = network.feature_info[-DEPTHS:]
        self.channels = [int(stage["num_chs"]) for stage in stages]
        self.strides = [int(stage["reduction"]) for stage in stages]
        normalisation = network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(normalisation["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation["std"]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [N, 3, S, S] in [0, 1] -> maps [N, channels[i], S / strides[i], S / strides[i]]."""
        normalised = channels_last((images - self.mean) / self.std)
        return list(
            self.network.forward_intermediates(normalised, indices=DEPTHS, intermediates_only=True, stop_early=True)
        )


class Mixing(nn.Module):
    """Projected GAN's fixed random projections: 1x1 over channels, then 3x3 from coarse maps down to fine ones.

    A constant of the code (its seed is not the run's), so that it needs no place in a checkpoint.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.depth = len(channels)
        for index, width in enumerate(channels):
            generator = seeds.generator(0, "projected_discriminator", "mixing", index)
            across = torch.randn(MIXED, width, 1, 1, generator=generator) * width**-0.5
            down = torch.randn(MIXED, MIXED, 3, 3, generator=generator) * (9 * MIXED) ** -0.5
            self.register_buffer(f"across{index}", across, persistent=False)
            self.register_buffer(f"down{index}", down, persistent=False)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Feature maps, fine to coarse -> as many maps of MIXED channels at the same sizes."""
        mixed: list[Tensor] = []
        for index in reversed(range(self.depth)):
            x = F.conv2d(maps[index], self.get_buffer(f"across{index}"))
            if mixed:
                x = x + resize(mixed[0], x.shape[-2], x.shape[-1], mode="bilinear")
            mixed.insert(0, F.conv2d(x, self.get_buffer(f"down{index}"), padding=1))
        return mixed


class Head(nn.Module):
    """One map -> one logit for each STRIDE x STRIDE pixels: halvings, then a 3x3 convolution; spectral norms all over.

    Group norms see each image alone (Projected GAN's batch norms let the images of a batch mix).
    """

    def __init__(self, inputs: int, channels: int, halvings: int) -> None:
        super().__init__()
        # A map that already has the logits' size gets one 1x1 layer instead of halvings.
        kernel, stride, padding = (4, 2, 1) if halvings else (1, 1, 0)
        modules: list[nn.Module] = []
        for depth in range(max(halvings, 1)):
            width = channels if depth else inputs
            # The norm that follows has its own shift, so the convolution needs none.
            convolution = nn.Conv2d(width, channels, kernel, stride, padding, bias=False)
            modules += [spectral_norm(convolution), GroupNorm(GROUPS, channels), nn.LeakyReLU(0.2)]
        modules.append(spectral_norm(nn.Conv2d(channels, 1, 3, 1, 1)))
        self.layers = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def load_dinov3(folder: Path) -> DinoFeatures:
    """A transformers folder of a DINOv3 ViT (config.json, model.safetensors); float32, eval mode, frozen."""
    config = folder / "config.json"
    if not config.is_file():
        raise RankEError(
            f"dinov3: {config} does not exist; give the folder of facebook/dinov3-vits16-pretrain-lvd1689m"
        )
    try:
        settings = parse_json(config.read_text())
        kind, layers = settings["model_type"], int(settings.get("num_hidden_layers", 12))
    except (ValueError, KeyError, TypeError) as error:
        raise RankEError(f"dinov3: {config} is not a transformers config ({error!r}); download it again") from error
    if kind != "dinov3_vit" or layers < DEPTHS:
        raise RankEError(f"dinov3: {config} is a {kind!r} of {layers} layers; give a dinov3_vit of >= {DEPTHS}")
    from rank_e.io.torchvision_ops import declare_torchvision_ops

    declare_torchvision_ops()
    from safetensors import SafetensorError
    from transformers import DINOv3ViTBackbone

    try:
        loaded: Any = DINOv3ViTBackbone.from_pretrained(
            folder,
            out_indices=[layers * (i + 1) // DEPTHS for i in range(DEPTHS)],
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).split("\n")[0]
        raise RankEError(f"dinov3: cannot load {folder}: {reason}; download model.safetensors again") from error
    backbone, report = loaded
    wrong = [f"{name} {sorted(map(str, keys))}" for name, keys in report.items() if keys]
    if wrong:  # transformers fills in missing weights at random and goes on
        raise RankEError(f"dinov3: {folder} does not fit its config: {'; '.join(wrong)}; download it again")
    check_finite(backbone.state_dict(), folder)
    return DinoFeatures(backbone).eval().requires_grad_(False)


def load_efficientnet(file: Path, name: str) -> EfficientNetFeatures:
    """timm's EfficientNet called `name` with the weights in `file`, strictly; float32, eval mode, frozen."""
    from rank_e.io.torchvision_ops import declare_torchvision_ops

    declare_torchvision_ops()
    import timm
    from timm.models.efficientnet import EfficientNet

    if not timm.is_model(name):
        raise RankEError(f"efficientnet_name: timm has no model {name!r}; give one such as tf_efficientnet_lite0")
    tensors = read_tensors(file)
    with torch.random.fork_rng(devices=[]):  # timm starts from random weights, which are replaced at once
        network = timm.create_model(name, pretrained=False)
    if not isinstance(network, EfficientNet):
        raise RankEError(f"efficientnet_name: {name!r} is no EfficientNet; give one such as tf_efficientnet_lite0")
    # Ports from TensorFlow lack the batch norms' step counts, which nothing here reads.
    counts = {name: count for name, count in network.state_dict().items() if name.endswith("num_batches_tracked")}
    tensors = counts | tensors
    check_shapes(tensors, shapes_of(network.state_dict()), file)
    check_finite(tensors, file)
    network.load_state_dict(tensors, strict=True)
    return EfficientNetFeatures(network.float()).eval().requires_grad_(False)


class ProjectedDiscriminator(nn.Module):
    """Frozen DINOv3 ViT-S/16 and EfficientNet, one trainable head for each of their eight maps.

    Images [N, 3, H, W] in [0, 1], resized to `image_size` (antialiased bilinear) if they differ -> float32 logits
    [N, 8, image_size / 32, image_size / 32], unbounded: a channel a head, so that each has an equal say in a mean.
    Parameters and state_dict are the heads'; `.to(device)` moves the frozen networks too, `.train()` and
    `.requires_grad_()` never reach them.
    """

    def __init__(
        self,
        dinov3: Path,
        efficientnet: Path,
        image_size: int = 256,
        channels: int = 64,
        efficientnet_name: str = "tf_efficientnet_lite0",
    ) -> None:
        """dinov3: a transformers folder (facebook/dinov3-vits16-pretrain-lvd1689m); efficientnet: timm's weights of
        `efficientnet_name` (.pth, .bin or .safetensors). RankEError names a file that cannot be loaded as such."""
        super().__init__()
        if image_size < STRIDE or image_size % STRIDE or channels < 1 or channels % GROUPS:
            raise RankEError(
                f"ProjectedDiscriminator: image_size {image_size}, channels {channels}; "
                f"give multiples of {STRIDE} and of {GROUPS}"
            )
        self.image_size = image_size
        transformer, convolutional = load_dinov3(dinov3), load_efficientnet(efficientnet, efficientnet_name)
        mixing = Mixing(convolutional.channels)
        # A tuple, because modules in it are not submodules: no training mode, no gradient, no place in state_dict.
        self._frozen = (transformer, convolutional, mixing.eval())
        maps = [(transformer.channels, transformer.stride)] * DEPTHS
        maps += [(MIXED, stride) for stride in convolutional.strides]
        for _, stride in maps:
            if STRIDE % stride or log2(STRIDE / stride) % 1:
                raise RankEError(f"dinov3: {dinov3} has patches of {stride} pixels; give a model of 8, 16 or 32")
        self.heads = nn.ModuleList(Head(width, channels, int(log2(STRIDE / stride))) for width, stride in maps)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        for net in self._frozen:
            net._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def initialise(self, generator: torch.Generator) -> ProjectedDiscriminator:
        """Fresh random heads (CPU only): normal, std fan_in^-0.5; norms the identity; biases 0. Returns self."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.GroupNorm):
                    module.reset_parameters()
                elif isinstance(module, nn.Conv2d):
                    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
                    weight = tensors["parametrizations.weight.original"]
                    weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)
                    tensors["parametrizations.weight.0._v"].normal_(generator=generator)
                    module.train()
                    for _ in range(POWER_ITERATIONS):
                        _ = module.weight  # in training mode each look turns the vectors once
                    if module.bias is not None:
                        module.bias.zero_()
        return self.train()

    def train(self, mode: bool = True) -> Self:
        """A step begins: the spectral norms' vectors turn once, and stay for all its passes.

        What a pass sees must not depend on how many there were: microbatches are passes too.
        """
        super().train(mode)
        with torch.no_grad():
            self._look_at_weights()  # in training mode each look turns the vectors once
        for module in self.modules():
            if isinstance(module, ParametrizationList):
                module.eval()
        return self

    def _look_at_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _ = module.weight

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] in [0, 1] -> what the heads read: four transformer maps, four mixed maps."""
        transformer, convolutional, mixing = self._frozen
        images = images.to(transformer.mean.dtype)
        images = resize(images, self.image_size, self.image_size, mode="bilinear")
        return [*transformer(images), *mixing(convolutional(images))]

    def forward(self, images: Tensor) -> Tensor:
        heads = cast(list[Head], list(self.heads))
        with cached():
            with float32_island(images.device):  # spectral norms are taken of float32 weights, once a pass
                self._look_at_weights()
            return torch.cat([head(x) for head, x in zip(heads, self.features(images), strict=True)], dim=1)


def projected(
    folder: Path,
    device: torch.device,
    *,
    dinov3: str,
    efficientnet: str,
    efficientnet_name: str,
    image_size: int,
    channels: int,
    generator: torch.Generator,
) -> ProjectedDiscriminator:
    """Fresh heads on the frozen networks `dinov3` (a folder) and `efficientnet` (a file) within `folder`."""
    networks = folder / dinov3, folder / efficientnet
    made = ProjectedDiscriminator(*networks, image_size, channels, efficientnet_name)
    return made.initialise(generator).to(device)
