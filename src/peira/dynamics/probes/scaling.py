"""Parametrisations and output scale: the knobs between lazy and feature learning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.errors import DataError

Parametrisation = Literal["standard", "ntk", "mean_field"]


class NTKLinear(nn.Module):
    """Linear map whose weights have unit variance and whose forward pass carries the scale.

    y = scale W x + bias_scale b with W, b ~ N(0, 1) (Jacot et al. 2018, section 2). `scale` is
    weight_std / sqrt(in) in the NTK parametrisation and weight_std / in in the mean-field one.

    Args:
        in_features, out_features: sizes.
        weight_std: standard deviation of the effective weights times sqrt(in).
        bias_std: of the effective biases (the paper's beta); 0 leaves the bias out.
        scale: "ntk" or "mean_field".
        generator: draws the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight_std: float = 1.0,
        bias_std: float = 0.0,
        scale: Literal["ntk", "mean_field"] = "ntk",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        power = 0.5 if scale == "ntk" else 1.0
        self.scale = weight_std / in_features**power
        self.bias_scale = bias_std
        self.weight = nn.Parameter(torch.randn(out_features, in_features, generator=generator))
        bias = nn.Parameter(torch.randn(out_features, generator=generator)) if bias_std else None
        self.register_parameter("bias", bias)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The scaled linear map."""
        y = self.scale * F.linear(x, self.weight)
        return y if self.bias is None else y + self.bias_scale * self.bias

    def extra_repr(self) -> str:
        """Sizes and scales, for printing."""
        out, inputs = self.weight.shape
        return f"{inputs}, {out}, scale={self.scale:.3g}, bias_scale={self.bias_scale:g}"


def mlp(
    widths: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    parametrisation: Parametrisation = "standard",
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A fully connected network, the same function at its start in "standard" and "ntk".

    Args:
        widths: inputs, hidden layers, outputs.
        activation: makes the module between two layers.
        parametrisation: "standard" puts the variance weight_std^2 / in into the weights, "ntk" into
            the forward pass, "mean_field" does so with a last layer divided by its inputs instead
            of their square root.
        weight_std, bias_std: as in `NTKLinear`.
        generator: draws the initial weights.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise DataError("widths", value=tuple(widths), expected="two or more positive sizes")
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        if parametrisation == "standard":
            layers.append(_linear(inputs, outputs, weight_std, bias_std, generator))
        else:
            scale: Literal["ntk", "mean_field"] = (
                "mean_field" if last and parametrisation == "mean_field" else "ntk"
            )
            layers.append(
                NTKLinear(
                    inputs,
                    outputs,
                    weight_std=weight_std,
                    bias_std=bias_std,
                    scale=scale,
                    generator=generator,
                )
            )
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)


def _linear(
    inputs: int, outputs: int, weight_std: float, bias_std: float, generator: torch.Generator | None
) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bool(bias_std))
    with torch.no_grad():
        layer.weight.normal_(0, weight_std / math.sqrt(inputs), generator=generator)
        if bias_std:
            layer.bias.normal_(0, bias_std, generator=generator)
    return layer


def learning_rate_scale(parametrisation: Parametrisation, width: int) -> float:
    """What multiplies the learning rate of gradient descent so that its pace has a limit in width.

    A function moves at the pace (learning rate) x (tangent kernel), and the kernel grows with the
    width as 1 in "ntk", as `width` in "standard", as 1/`width` in "mean_field".
    """
    return {"ntk": 1.0, "standard": 1.0 / width, "mean_field": float(width)}[parametrisation]


class ScaledOutput(nn.Module):
    """alpha (f(x) - f_0(x)): large alpha trains lazily, small alpha learns features.

    Args:
        model: the network f; its weights are trained in place.
        alpha: output scale (Chizat et al. 2019), greater than 0.
        centred: take away the network's own output at the start, so that alpha does not scale
            the initial error.
    """

    def __init__(self, model: nn.Module, alpha: float, *, centred: bool = True) -> None:
        super().__init__()
        if not alpha > 0:
            raise DataError("alpha", value=alpha, expected="a number greater than 0")
        self.model = model
        self.alpha = alpha
        self.start = copy.deepcopy(model).requires_grad_(False) if centred else None

    def forward(self, x: Tensor) -> Tensor:
        """The scaled output, in the shape that the network gives."""
        y = self.model(x)
        if self.start is not None:
            y = y - self.start(x)
        return self.alpha * y

    def learning_rate(self, base: float) -> float:
        """base / alpha^2: the pace of the function is then the same for every alpha."""
        return base / self.alpha**2
