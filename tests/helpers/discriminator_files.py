"""Files of frozen networks that the decoder update reads, at toy size, seeded."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rank_e.io.torchvision_ops import declare_torchvision_ops
from rank_e.seeds import generator


def vgg_features() -> nn.Sequential:
    """VGG16's convolutions (configuration D), named and numbered as in torchvision's `features`."""
    layers: list[nn.Module] = []
    width = 3
    for stage, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for _ in range(count):
            convolution = nn.utils.skip_init(nn.Conv2d, width, channels, 3, padding=1)
            draw, width = generator(0, "vgg", len(layers)), channels
            with torch.no_grad():
                convolution.weight.normal_(0.0, (2 / (9 * convolution.in_channels)) ** 0.5, generator=draw)
                convolution.bias.normal_(0.0, 0.1, generator=draw)
            layers += [convolution, nn.ReLU()]
        if stage < 4:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers).requires_grad_(False)


NAME = "tf_efficientnet_lite0"


def seeded_weights(module: nn.Module, name: str) -> Any:
    """Weights that keep the size of what passes through, from the project's generator."""
    with torch.no_grad():
        for key, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator(0, name, key))
    return module.eval()


def frozen_networks(root: Path) -> tuple[Path, Path]:
    """What the projected discriminator reads, written to `root`: a folder of a tiny DINOv3, a timm file."""
    declare_torchvision_ops()
    import timm
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=2, num_register_tokens=4
    )
    seeded_weights(DINOv3ViTModel(config), "dinov3").save_pretrained(root / "dinov3")
    network = seeded_weights(timm.create_model(NAME), "efficientnet")
    torch.save(network.state_dict(), root / "efficientnet.pth")
    return root / "dinov3", root / "efficientnet.pth"
