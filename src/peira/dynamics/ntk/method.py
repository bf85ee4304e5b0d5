"""Neural tangent kernels of networks, infinite and actual, and what training does by them.

The closed forms live in `peira.dynamics.probes` (`infinite`, `forecast`, `tangent`), because other
papers stand on them; here they meet architectures, tables and trained weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.dynamics.ntk.architecture import Architecture, Nonlinearity
from peira.dynamics.ntk.convolution import convolutional_kernels
from peira.dynamics.ntk.estimators import NTKClassifier, NTKRegressor, closest_pair
from peira.dynamics.probes import Laziness, LinearisedModel, empirical_ntk, laziness
from peira.dynamics.probes.forecast import (
    EarlyStop,
    EnsembleForecast,
    Forecast,
    early_stop_time,
    ensemble_forecast,
    mode_times,
    training_forecast,
)
from peira.dynamics.probes.infinite import InfiniteKernels, kernels, points
from peira.dynamics.probes.parameters import flatten
from peira.engine.errors import PeiraError

__all__ = [
    "Architecture",
    "EarlyStop",
    "EnsembleForecast",
    "Forecast",
    "InfiniteKernels",
    "LazyReport",
    "NTKClassifier",
    "NTKRegressor",
    "Nonlinearity",
    "closest_pair",
    "convolutional_kernels",
    "early_stop_time",
    "empirical_ntk",
    "ensemble_forecast",
    "kernels",
    "lazy_report",
    "mode_times",
    "tangent_kernel",
    "training_forecast",
]

Floats = npt.NDArray[np.float64]


def tangent_kernel(
    model: Architecture | nn.Module,
    x: npt.ArrayLike,
    x2: npt.ArrayLike | None = None,
    *,
    kind: Literal["analytic", "empirical"] = "analytic",
    seed: int = 0,
) -> Floats:
    """Neural tangent kernel per output, of a network's infinite-width limit or of its weights.

    Args:
        model: an `Architecture`, or any module; for the analytic kernel a sequence of `NTKLinear`
            and activations.
        x, x2: points (n, features) and (m, features); `x` itself without `x2`.
        kind: "analytic" is the limit (Theorem 1), "empirical" the kernel at the module's present
            weights, or at weights of an `Architecture` drawn with `seed`, as the mean over the
            outputs (equation 5); `empirical_ntk` gives all pairs of outputs.
        seed: of the weights.

    Returns:
        (n, m), float64.

    Raises:
        DataError: bad points, or a layer whose limit is not known (named).
        PeiraError: unknown activation or kind, a kernel beyond the memory.
    """
    if kind == "analytic":
        spec = model if isinstance(model, Architecture) else Architecture.of(model)
        return spec.kernels(x, x2).ntk
    if kind != "empirical":
        raise PeiraError(f"kind is {kind!r}; expected 'analytic' or 'empirical'")
    left = points(x)
    if isinstance(model, Architecture):
        model = model.network(left.shape[1], torch.Generator().manual_seed(seed)).double()
    like = next(model.parameters())
    inputs = [
        None if part is None else torch.from_numpy(points(part)).to(like) for part in (left, x2)
    ]
    with torch.no_grad():
        outputs = model(inputs[0][:1]).numel()
    kernel: Floats = empirical_ntk(model, *inputs, mode="trace").double().cpu().numpy() / outputs
    return kernel


@dataclass(frozen=True)
class LazyReport:
    """Whether a trained network did what its tangent kernel at the start says.

    Attributes:
        change: weights, representation and kernel, before against after.
        moved: root mean square of f_after - f_before on the probe.
        linear_error: |f_after - f_linear| / |f_after - f_before|, where f_linear moves the
            network's first-order expansion at the start by the same weights: 0 is lazy, 1 or
            more means that the expansion says nothing.
    """

    change: Laziness
    moved: float
    linear_error: float

    @property
    def lazy(self) -> bool:
        """Whether the expansion at the start tells 90% of what changed."""
        return self.linear_error < 0.1


def lazy_report(
    model: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    probe: Float[Tensor, "n ..."],
) -> LazyReport:
    """Compare a network before and after training with its linearisation at the start.

    Args:
        model: the architecture; its own weights do not count.
        before, after: its `state_dict()` at both times.
        probe: inputs, chosen before training.

    Raises:
        DataError: weights of another model.
    """
    change = laziness(model, before, after, probe)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(before)
        linear = LinearisedModel(model)
        moved = {name: after[name].to(linear.start[name]) for name in linear.names}
        with torch.no_grad():
            start = model(probe)
            linear.delta.copy_(flatten(moved) - flatten(linear.start))
            forecast = linear(probe)
            model.load_state_dict(after)
            end = model(probe)
    finally:
        model.load_state_dict(own)
    step = end - start
    scale = step.norm().clamp_min(torch.finfo(step.dtype).tiny)
    error = float((end - forecast).norm() / scale) if step.any() else 0.0
    return LazyReport(change, float(step.square().mean().sqrt()), error)
