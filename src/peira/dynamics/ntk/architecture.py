"""Fully connected networks of the paper, by their settings: finite, infinite, and recognised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data import DataError
from peira.dynamics.probes.infinite import (
    Activation,
    InfiniteKernels,
    activation_of,
    kernels,
    leaky_relu,
)
from peira.dynamics.probes.scaling import NTKLinear, Parametrisation, mlp
from peira.engine.errors import PeiraError, nearest

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
    "linear": lambda z: z,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "gelu": F.gelu,
    "square": torch.square,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
}


class Nonlinearity(nn.Module):
    """gain * activation(z), element by element.

    Args:
        activation: a name of `FUNCTIONS` or a torch function.
        gain: factor in front.
    """

    def __init__(self, activation: str | Callable[[Tensor], Tensor], gain: float = 1.0) -> None:
        super().__init__()
        if isinstance(activation, str) and activation not in FUNCTIONS:
            raise PeiraError(f"no activation {activation!r}; {nearest(activation, FUNCTIONS)}")
        self.activation, self.gain = activation, gain

    def forward(self, z: Tensor) -> Tensor:
        """The activity, in the shape of `z`."""
        function = FUNCTIONS[self.activation] if isinstance(self.activation, str) else None
        return self.gain * (function or self.activation)(z)  # type: ignore[operator]

    def extra_repr(self) -> str:
        """Name and gain, for printing."""
        return f"{self.activation}, gain={self.gain:.3g}"


@dataclass(frozen=True)
class Architecture:
    """A fully connected network in NTK parametrisation (section 2 of the paper).

    h_{l+1} = s W sigma(h_l) / sqrt(n_l) + beta b with standard normal W and b.

    Attributes:
        depth: weight layers (the paper's L): hidden layers + 1.
        activation: name (see `kernels`), or a function of torch tensors.
        beta: standard deviation of the biases; 0.1 in the paper's experiments.
        weight_var: s^2; 1 in the paper.
        gain: factor in front of the activation.
        width: of every hidden layer, for networks that are not infinite.
        outputs: of the network.
    """

    depth: int = 4
    activation: str | Activation | Callable[..., object] = "relu"
    beta: float = 0.1
    weight_var: float = 1.0
    gain: float = 1.0
    width: int = 1024
    outputs: int = 1

    @classmethod
    def normalised(
        cls,
        depth: int,
        activation: str | Callable[..., object] = "relu",
        beta: float = 0.1,
        width: int = 1024,
    ) -> Self:
        """Of unit variance in all layers for inputs of norm sqrt(n_0): weight variance 1 - beta^2,
        and a gain that makes E[sigma(z)^2] = 1 for standard normal z (sqrt(2) for ReLU)."""
        if not 0 <= beta < 1:
            raise PeiraError(f"beta = {beta}; expected 0 or more, below 1")
        square = float(activation_of(activation).square(np.ones(1))[0])
        if not square > 0:
            raise PeiraError("the activation vanishes everywhere")
        return cls(depth, activation, beta, 1 - beta**2, square**-0.5, width)

    def kernels(
        self, x: npt.ArrayLike, x2: npt.ArrayLike | None = None, chunk: int | None = None
    ) -> InfiniteKernels:
        """NNGP and NTK of the infinitely wide network; see `kernels`."""
        return kernels(
            x,
            x2,
            depth=self.depth,
            activation=self.activation,
            weight_var=self.weight_var,
            bias_var=self.beta**2,
            gain=self.gain,
            chunk=chunk,
        )

    def network(
        self,
        inputs: int,
        generator: torch.Generator | None = None,
        parametrisation: Parametrisation = "ntk",
    ) -> nn.Sequential:
        """A network of this architecture with random weights.

        Args:
            inputs: features of a point.
            generator: draws the weights.
            parametrisation: "ntk" or "standard" (the same function at its start).
        """
        if isinstance(self.activation, Activation):
            raise PeiraError("a network needs the activation itself: give its name or a function")
        activation = self.activation
        return mlp(
            (inputs, *[self.width] * (self.depth - 1), self.outputs),
            lambda: Nonlinearity(activation, self.gain),  # type: ignore[arg-type]
            parametrisation=parametrisation,
            weight_std=math.sqrt(self.weight_var),
            bias_std=self.beta,
            generator=generator,
        )

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The architecture of a sequence of `NTKLinear` and elementwise activations.

        Raises `DataError` that names the layer whose infinite-width limit is not known here:
        another parametrisation, batch normalisation, convolutions, layers that differ.
        """
        layers = [(n, m) for n, m in model.named_modules() if not list(m.children())]
        layers = [(n, m) for n, m in layers if not isinstance(m, nn.Flatten)]
        linear, between = layers[::2], layers[1::2]
        for name, module in linear:
            if not isinstance(module, NTKLinear):
                raise _unknown(name, module, "NTKLinear")
        found = {_activation(name, module) for name, module in between}
        if len(layers) % 2 == 0 or len(found) > 1:
            raise DataError(
                "the model's layers do not fit",
                expected="NTKLinear layers with one kind of activation between them",
            )
        maps = [module for _, module in linear if isinstance(module, NTKLinear)]
        spreads = {round(m.scale**2 * m.weight.shape[1], 9) for m in maps}
        biases = {m.bias_scale if m.bias is not None else 0.0 for m in maps}
        if len(spreads) > 1 or len(biases) > 1:
            raise DataError(
                "the layers differ in the scale of weights or biases",
                value=sorted(spreads | biases),
                expected="one weight_std and one bias_std, in NTK parametrisation",
            )
        activation, gain = found.pop() if found else ("linear", 1.0)
        width = maps[0].weight.shape[0] if len(maps) > 1 else cls.width
        outputs = maps[-1].weight.shape[0]
        return cls(len(maps), activation, *biases, *spreads, gain, width, outputs)


MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Identity: "linear",
}


def _activation(
    name: str, module: nn.Module
) -> tuple[str | Activation | Callable[..., object], float]:
    if isinstance(module, Nonlinearity):
        return module.activation, module.gain
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "gelu", 1.0
    if isinstance(module, nn.LeakyReLU):
        return leaky_relu(module.negative_slope), 1.0
    if isinstance(module, nn.Softplus) and module.beta == 1:
        return "softplus", 1.0
    if type(module) not in MODULES:
        raise _unknown(name, module, f"an activation: {', '.join(sorted(FUNCTIONS))}")
    return MODULES[type(module)], 1.0


def _unknown(name: str, module: nn.Module, expected: str) -> DataError:
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        expected += "; the kernel of nn.Linear in standard parametrisation grows with its width"
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        expected += "; batch normalisation couples the points of a batch"
    return DataError(
        f"no infinite-width kernel is known for layer {name or 'of the model'}",
        value=kind,
        expected=expected,
    )
