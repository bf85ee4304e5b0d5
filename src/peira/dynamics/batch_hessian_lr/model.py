"""The networks of the study: an MLP, and the paper's convolutional ones for 32 x 32 pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from peira.nn import networks

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def mlp(widths: Sequence[int], activation: str = "tanh") -> nn.Sequential:
    """Linear layers of these widths, inputs first, with activations between; flattens inputs."""
    return nn.Sequential(nn.Flatten(), *networks.mlp(widths, activation))


def vgg16(classes: int) -> nn.Sequential:
    """VGG-16 for (batch, 3, 32, 32), without batch normalisation; He initialisation."""
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)]
    network = nn.Sequential(*layers)
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


class PreactivationBlock(nn.Module):
    """Two 3 x 3 convolutions, each after normalisation and ReLU, and a shortcut around both."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(width)])
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
            ]
        )
        self.shortcut = (
            nn.Identity()
            if channels == width and stride == 1
            else nn.Conv2d(channels, width, 1, stride, bias=False)
        )

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Tensor:
        first = F.relu(self.norms[0](x))
        shortcut = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(first)
        h = self.convolutions[0](first)
        return shortcut + self.convolutions[1](F.relu(self.norms[1](h)))


def preactivation_resnet(blocks: int, widths: Sequence[int], classes: int) -> nn.Sequential:
    """A pre-activation residual network of three stages for (batch, 3, 32, 32).

    Pre-ResNet-110 has 18 blocks a stage of widths 16, 32, 64; WideResNet-28-10 has 4 of widths
    160, 320, 640.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    channels = 16
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers.append(PreactivationBlock(channels, width, stride))
            channels = width
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, classes))


def build(network: str, features: int, classes: int, seed: int) -> nn.Module:
    """One of the study's networks at the initial weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if network == "vgg16":
            return vgg16(classes)
        if network == "preresnet110":
            return preactivation_resnet(18, (16, 32, 64), classes)
        if network == "wrn-28-10":
            return preactivation_resnet(4, (160, 320, 640), classes)
        if network == "linear":
            linear = nn.Linear(features, classes, bias=False).double()
            nn.init.zeros_(linear.weight)
            return linear
        kind, *widths = network.split("-")
        return mlp([features, *map(int, widths), classes], kind)
