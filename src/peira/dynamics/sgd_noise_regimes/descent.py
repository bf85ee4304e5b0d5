"""Descent on the hinge loss of a centred, scaled predictor until every datum is fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from peira.data.errors import DataError

# What became of a run.
RUNNING, FITTED, BROKEN = 0, 1, 2
# Outputs beyond this multiple of 1 + margin have left every basin: the step was too large.
BLOWN_UP = 1e6
# Steps on end whose unfitted data all have a gradient of zero, after which a run is stuck: each of
# them would have shown another unfitted datum, if there were one, with probability 1/2 or more.
DEAD = 64

Noise = Literal["batches", "gaussian"]


@dataclass(frozen=True)
class SGDRecipe:
    """One run of stochastic gradient descent.

    The predictor is F = alpha (f(w) - f(w_0)), the loss of a datum (1/alpha) max(0, 1 - y F): its
    gradient is that of -y f until y (f - f_0) reaches the margin 1/alpha, and then zero.

    Attributes:
        dt: length of a step (the learning rate).
        alpha: scale of the output; large is lazy, small learns features.
        batch: data of a step, drawn without replacement; all of them make it gradient descent.
        steps: budget; a run that does not fit all data by then is censored.
        noise: "batches", or "gaussian" for the stochastic differential equation with the same mean
            and covariance of a step.
    """

    dt: float
    alpha: float = 1.0
    batch: int = 16
    steps: int = 100_000
    noise: Noise = "batches"

    def __post_init__(self) -> None:
        for name in ("dt", "alpha"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise DataError(name, value=value, expected="a number greater than 0")
        for name in ("batch", "steps"):
            if getattr(self, name) < 1:
                raise DataError(name, value=getattr(self, name), expected="1 or more")
        if self.noise not in ("batches", "gaussian"):
            raise DataError("noise", value=self.noise, expected="'batches' or 'gaussian'")

    @property
    def temperature(self) -> float:
        """T = dt / B, the size of the noise."""
        return self.dt / self.batch

    @property
    def margin(self) -> float:
        """What y (f - f_0) has to reach."""
        return 1 / self.alpha

    def check_size(self, size: int) -> None:
        """Raise `DataError` where a batch needs more data than there are."""
        if self.batch > size:
            raise DataError("batch", value=self.batch, expected=f"at most the {size} data")


class Descent(Protocol):
    """One or several runs under way; their models or weights change in place."""

    def advance(self, until: int) -> None:
        """Go on to step `until`, or to where every run has stopped."""

    @property
    def status(self) -> np.ndarray:
        """RUNNING, FITTED or BROKEN by run."""

    @property
    def moved(self) -> np.ndarray:
        """The last step by run that changed weights: the stop time in steps, once fitted."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def check_labels(y: np.ndarray) -> None:
    """Raise `DataError` unless the labels are -1 and 1, both of them."""
    values = np.unique(y)
    if not np.array_equal(values, [-1, 1]):
        wrong = [float(v) for v in values if v not in (-1, 1)]
        raise DataError("labels", value=(wrong or values.tolist())[:5], expected="both -1 and 1")


def marks(steps: int, ratio: float = 2.0) -> list[int]:
    """Steps at which a run is looked at: 1 and then growing by `ratio`, up to `steps`."""
    found, step = [], 1.0
    while step < steps:
        found.append(round(step))
        step = max(step * ratio, step + 1)
    return [*found, steps]


def same_of(recipes: Sequence[SGDRecipe]) -> SGDRecipe:
    """The first recipe; raises `DataError` where batch, budget or noise differ between them."""
    kinds = {(r.batch, r.steps, r.noise) for r in recipes}
    if len(kinds) != 1:
        raise DataError("recipes of one ensemble", value=kinds, expected="one batch, budget, noise")
    return recipes[0]
