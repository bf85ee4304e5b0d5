"""The networks of the paper: unit-variance weights, normalised activations, mean-field output."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.errors import DataError
from peira.dynamics.probes import NTKLinear, empirical_ntk, mlp

Activation = Literal["relu", "gelu"]


class Normalised(nn.Module):
    """phi(z) / c with E[(phi(z) / c)^2] = 1 for z ~ N(0, 1).

    GELU is its tanh approximation, as in the official code.
    """

    def __init__(self, name: Activation = "relu") -> None:
        super().__init__()
        if name not in ("relu", "gelu"):
            raise DataError("activation", value=name, expected="'relu' or 'gelu'")
        self.name = name
        nodes, weights = np.polynomial.hermite_e.hermegauss(100)
        second = weights @ self._phi(torch.from_numpy(nodes)).numpy() ** 2 / weights.sum()
        # ReLU has a kink, which quadrature does not integrate to the last digit.
        self.factor = math.sqrt(2) if name == "relu" else 1 / math.sqrt(second)

    def _phi(self, z: Tensor) -> Tensor:
        return F.relu(z) if self.name == "relu" else F.gelu(z, approximate="tanh")

    def forward(self, z: Tensor) -> Tensor:
        """Elementwise."""
        return self.factor * self._phi(z)


class Flat(nn.Sequential):
    """Layers in a row whose single output comes as (n,)."""

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n"]:
        """One number for each input."""
        return super().forward(x).squeeze(-1)


def mean_field_mlp(
    inputs: int,
    width: int,
    depth: int,
    activation: Activation = "relu",
    generator: torch.Generator | None = None,
) -> Flat:
    """FC-L of the paper: `depth` hidden layers, no biases, weights N(0, 1).

    z = x W / sqrt(fan-in), normalised activations, output divided by its fan-in.

    Args:
        inputs: numbers of one datum, which comes flat.
        width: h, of every hidden layer.
        depth: L, hidden layers.
        activation: "relu" or "gelu".
        generator: draws the weights.
    """
    widths = [inputs, *[width] * depth, 1]
    layers = mlp(
        widths, lambda: Normalised(activation), parametrisation="mean_field", generator=generator
    )
    return Flat(*layers)


class GroupConv(nn.Module):
    """Convolution without bias, weights N(0, 1), divided by the root of its fan-in."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        depthwise: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.groups = inputs if depthwise else 1
        fan_in = kernel**2 * inputs // self.groups
        self.stride, self.kernel, self.root = stride, kernel, math.sqrt(fan_in)
        shape = (outputs, inputs // self.groups, kernel, kernel)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, x: Float[Tensor, "n channels y x"]) -> Float[Tensor, "n outputs y2 x2"]:
        """Padded so that stride s gives ceil(size / s) positions."""
        pads = [
            amount
            for size in (x.shape[-1], x.shape[-2])
            for need in [max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)]
            for amount in (need // 2, need - need // 2)
        ]
        y = F.conv2d(F.pad(x, pads), self.weight, stride=self.stride, groups=self.groups)
        return y / self.root


class InvertedResidual(nn.Module):
    """Widen three times, filter each channel, narrow; averaged with the input where it fits."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, act: Activation, draws: torch.Generator | None
    ) -> None:
        super().__init__()
        middle = 3 * inputs
        self.layers = nn.Sequential(
            GroupConv(inputs, middle, 1, generator=draws),
            Normalised(act),
            GroupConv(middle, middle, 5, stride, depthwise=True, generator=draws),
            Normalised(act),
            GroupConv(middle, outputs, 1, generator=draws),
        )
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Float[Tensor, "n channels y x"]) -> Float[Tensor, "n outputs y2 x2"]:
        """The block."""
        y = self.layers(x)
        return (x + y) / math.sqrt(2) if self.residual else y


def mnas(
    channels: int,
    width: int,
    activation: Activation = "relu",
    generator: torch.Generator | None = None,
) -> Flat:
    """The MNAS-like convolutional network of the paper's code.

    Args:
        channels: of a picture (n, channels, y, x).
        width: h; layers have 4h, 2h, h, h, 3h, 3h and 20h channels.
        activation: "relu" or "gelu".
        generator: draws the weights.
    """
    h, g = width, generator
    return Flat(
        GroupConv(channels, 4 * h, 5, 2, generator=g),
        Normalised(activation),
        GroupConv(4 * h, 4 * h, 5, depthwise=True, generator=g),
        Normalised(activation),
        GroupConv(4 * h, 2 * h, 1, generator=g),
        Normalised(activation),
        *(
            InvertedResidual(inputs, outputs, stride, activation, g)
            for inputs, outputs, stride in (
                (2 * h, h, 2),
                (h, h, 1),
                (h, 3 * h, 2),
                (3 * h, 3 * h, 1),
            )
        ),
        GroupConv(3 * h, 20 * h, 1, generator=g),
        Normalised(activation),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        # The only bias; like the weights it is divided by the fan-in.
        NTKLinear(20 * h, 1, bias_std=1 / (20 * h), scale="mean_field", generator=g),
    )


def stability_limit(model: nn.Module, x: Float[Tensor, "n ..."]) -> float:
    """The step above which descent on a loss of unit curvature would be unstable: 2 / lambda_max.

    Args:
        model: one output for each input, at the weights that it has.
        x: the n training data.

    Returns:
        2 over the largest eigenvalue of the empirical tangent kernel of f divided by n.
    """
    kernel = empirical_ntk(model, x, mode="trace").double()
    return 2 * len(x) / float(torch.linalg.eigvalsh(kernel)[-1])
