"""Networks of three and of two layers as torch modules, and training of all layers at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.dynamics.hierarchical_polynomials.features import InnerFeatures
from peira.dynamics.hierarchical_polynomials.link import LinkRegressor, OuterActivation

Array = npt.NDArray[np.float64]
Steps = Callable[[int, tuple[object, ...]], Iterable[int]]


class ThreeLayerNetwork(nn.Module):
    """h(x) = c + (1/m_1) sum_i a_i sigma_1(<w_i, h_0(x)> + b_i).

    Symmetric at initialisation: the second half of the outer units repeats W and b of the first
    with the opposite signs a, so that h = c = 0 everywhere.

    Args:
        inner: h_0, a module from (rows, d) to (rows, inner_width); its parameters train too unless
            they are frozen.
        inner_width: m_2.
        outer_width: m_1, even.
        activation: sigma_1.
        weight_std: standard deviation of the entries of W, times sqrt(m_2).
        generator: draws W, b and the signs.
    """

    def __init__(
        self,
        inner: nn.Module,
        inner_width: int,
        outer_width: int = 256,
        activation: OuterActivation = "relu",
        weight_std: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        half = outer_width // 2
        w = torch.randn(half, inner_width, generator=generator) * weight_std / inner_width**0.5
        b = torch.randn(half, generator=generator)
        a = torch.randint(0, 2, (half,), generator=generator) * 2.0 - 1
        self.inner, self.activation = inner, activation
        self.weight = nn.Parameter(torch.cat([w, w]))
        self.bias = nn.Parameter(torch.cat([b, b]))
        self.outer = nn.Parameter(torch.cat([a, -a]))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows"]:
        """The network's output for every row."""
        inputs = self.inner(x) @ self.weight.T + self.bias
        return sigma(inputs, self.activation) @ self.outer / len(self.outer) + self.offset

    @classmethod
    def from_stages(
        cls, inner: InnerFeatures, direction: Array, offset: float, link: LinkRegressor
    ) -> ThreeLayerNetwork:
        """The network that two fitted stages are, in double precision.

        Args:
            inner: fitted inner layer.
            direction: w; z = <w, h_0(x)> - offset.
            offset: see `direction`.
            link: fitted second stage.
        """
        network = cls(_Frozen(inner), inner.width_, 2, link.activation).double()
        signs = torch.from_numpy(link.signs_)
        network.weight = nn.Parameter(torch.outer(signs, torch.from_numpy(direction)))
        network.bias = nn.Parameter(torch.from_numpy(link.biases_) - signs * offset)
        network.outer = nn.Parameter(torch.from_numpy(link.weights_ * len(link.weights_)))
        network.offset = nn.Parameter(torch.tensor(link.intercept_, dtype=torch.float64))
        return network


def sigma(t: Tensor, activation: OuterActivation) -> Tensor:
    """sigma_1: ReLU, or t^2 below 1 in size and 2|t| - 1 beyond."""
    if activation == "relu":
        return t.relu()
    return torch.where(t.abs() < 1, t**2, 2 * t.abs() - 1)


class _Frozen(nn.Module):
    """A fitted inner layer as a module."""

    def __init__(self, features: InnerFeatures) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows width"]:
        return self.features.evaluate(x).T


class _Flat(nn.Module):
    """(rows, 1) -> (rows,)."""

    def forward(self, x: Float[Tensor, "rows 1"]) -> Float[Tensor, "rows"]:
        return x[:, 0]


def end_to_end_network(dimension: int, width: int, generator: torch.Generator) -> nn.Module:
    """Three layers of ReLUs, all of them trained: d -> width -> width -> 1, symmetric start."""
    inner = nn.Sequential(_linear(dimension, width, generator), nn.ReLU())
    return ThreeLayerNetwork(inner, width, width, weight_std=math.sqrt(2), generator=generator)


def two_layer_network(dimension: int, width: int, generator: torch.Generator) -> nn.Module:
    """d -> width -> 1 with ReLUs."""
    return nn.Sequential(
        _linear(dimension, width, generator), nn.ReLU(), _linear(width, 1, generator), _Flat()
    )


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    with torch.no_grad():
        layer.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
        layer.bias.zero_()
    return layer


def train(
    network: nn.Module,
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n"],
    epochs: int,
    learning_rate: float,
    generator: torch.Generator,
    steps: Steps,
    batch: int = 128,
    validation: float = 0.2,
) -> tuple[nn.Module, list[tuple[int, float, float]]]:
    """Adam on the squared loss of all layers; the epoch that is best on held-out rows is kept.

    Args:
        network: changed in place.
        x, y: rows and labels; labels of unit scale.
        epochs: passes over the rows that are not held out; the learning rate falls to zero along
            a cosine.
        learning_rate: of the first epoch.
        generator: draws the held-out rows and the batches.
        steps: turns (epochs, what has to be saved) into the epochs to go through.
        batch: rows of a step.
        validation: share of the rows held out.

    Returns:
        The network at its best epoch, and (epoch, training loss, held-out loss) of all epochs.
    """
    held = round(validation * len(x))
    order = torch.randperm(len(x), generator=generator)
    (x_held, y_held), x, y = (x[order[:held]], y[order[:held]]), x[order[held:]], y[order[held:]]
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    best = {"loss": math.inf, "state": copy.deepcopy(network.state_dict()), "curve": []}
    for epoch in steps(epochs, (network, optimizer, scheduler, _Generator(generator), best)):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            loss = (network(x[rows]) - y[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        scheduler.step()
        with torch.no_grad():
            error = (network(x_held) - y_held).square().mean().item()
        best["curve"].append((epoch, total / len(x), error))
        if error < best["loss"]:
            best["loss"], best["state"] = error, copy.deepcopy(network.state_dict())
    network.load_state_dict(best["state"])
    return network, best["curve"]


class _Generator:
    """A generator that a checkpoint can keep."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Tensor]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["state"])
