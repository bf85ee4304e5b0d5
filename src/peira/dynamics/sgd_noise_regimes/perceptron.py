"""The perceptron, whose signal and noise can be measured apart, and its depleted data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from numba import njit

from peira.data.errors import DataError
from peira.dynamics.sgd_noise_regimes.batches import draw, key_of
from peira.dynamics.sgd_noise_regimes.descent import (
    BROKEN,
    FITTED,
    RUNNING,
    SGDRecipe,
    check_labels,
)


def depleted_gaussian(
    size: int, dimension: int, depletion: float, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "size dimension"], Float64[np.ndarray, "size"]]:
    """Data with few points near the boundary between two labels.

    The density of x_1 goes as |x_1|^chi exp(-x_1^2/2), the other coordinates are N(0, 1), and the
    label is the sign of x_1 (Sclocchi et al. 2023, section on the perceptron).

    Args:
        size: number of points.
        dimension: of a point, 2 or more.
        depletion: chi > -1; 0 gives plain Gaussian data.
        rng: draws them.

    Returns:
        Points and labels -1 or 1.
    """
    if not depletion > -1:
        raise DataError("depletion", value=depletion, expected="a number greater than -1")
    if dimension < 2 or size < 1:
        raise DataError("size and dimension", value=(size, dimension), expected="at least 1 and 2")
    x = rng.standard_normal((size, dimension))
    y = rng.choice([-1.0, 1.0], size)
    x[:, 0] = y * np.sqrt(2 * rng.gamma((depletion + 1) / 2, size=size))
    return x, y


def depleted_error(signal: float, noise: float, depletion: float) -> float:
    """Exact test error of a direction on depleted Gaussian data.

    It is P(|w_perp| z > w_1 |x_1|). |x_1| is chi-distributed with chi + 1 degrees of freedom, so
    the ratio z / |x_1| is Student's t but for a factor.

    Args:
        signal: w_1, along the true direction.
        noise: |w_perp|.
        depletion: chi of the data.
    """
    from scipy.special import stdtr

    if noise == 0:
        return float(signal < 0)
    freedom = depletion + 1
    return float(stdtr(freedom, -signal / noise * math.sqrt(freedom)))


@njit(cache=True)
def _advance(x, y, start, w, margin, dt, batch, gaussian, key, counters, until):  # type: ignore[no-untyped-def]
    """Descend in place; counters are (step, last step that moved w, steps since)."""
    size, dimension = x.shape
    scale = 1 / math.sqrt(dimension)
    seen = size if gaussian else batch
    chosen, weight = np.empty(seen, np.int64), np.empty(seen)
    push = np.empty(seen)
    patience = (size + seen - 1) // seen
    while counters[0] < until:
        counters[0] += 1
        draw(key, counters[0], size, batch, gaussian, chosen, weight)
        wrong = False
        for k in range(seen):
            i = chosen[k]
            f = 0.0
            for j in range(dimension):
                f += x[i, j] * w[j]
            push[k] = 0.0
            if not y[i] * (f * scale - start[i]) >= margin:
                push[k] = dt * weight[k] * scale * y[i]
                wrong = True
        if wrong:
            counters[1], counters[2] = counters[0], 0
            for k in range(seen):
                if push[k] != 0:
                    for j in range(dimension):
                        w[j] += push[k] * x[chosen[k], j]
            if not np.isfinite(w[0]):
                return BROKEN
        else:
            counters[2] += 1
            if counters[2] % patience == 0 and _all_fitted(x, y, start, w, margin):
                return FITTED
    return RUNNING


@njit(cache=True)
def _all_fitted(x, y, start, w, margin):  # type: ignore[no-untyped-def]
    scale = 1 / math.sqrt(x.shape[1])
    for i in range(len(x)):
        f = 0.0
        for j in range(x.shape[1]):
            f += x[i, j] * w[j]
        if not y[i] * (f * scale - start[i]) >= margin:
            return False
    return True


class Perceptron:
    """f(w, x) = w.x / sqrt(d) under descent (one run).

    Args:
        x: data (n, d).
        y: labels -1 and 1.
        recipe: step, margin, batch, budget.
        seed: of the batches.
        weights: initial weights (d,).
        centred: subtract the initial output. Without it the initial weights have to be unlearnt,
            which sets a scale of its own: the plateau of small temperatures.
    """

    def __init__(
        self,
        x: Float64[np.ndarray, "n d"],
        y: Float64[np.ndarray, "n"],
        recipe: SGDRecipe,
        seed: int,
        weights: Float64[np.ndarray, "d"],
        *,
        centred: bool = False,
    ) -> None:
        x, y = np.ascontiguousarray(x, np.float64), np.ascontiguousarray(y, np.float64)
        if x.ndim != 2 or y.shape != x.shape[:1] or weights.shape != x.shape[1:]:
            raise DataError(
                "shapes of data, labels, weights",
                value=(x.shape, y.shape, weights.shape),
                expected="(n, d), (n,), (d,)",
            )
        if not np.isfinite(x).all():
            raise DataError("data that are not finite", expected="numbers")
        check_labels(y)
        recipe.check_size(len(x))
        self.x, self.y, self.recipe, self.key = x, y, recipe, key_of(seed)
        self.initial, self.weights = weights.copy(), weights.copy()
        self.start = centred * (x @ weights) / math.sqrt(x.shape[1])
        self.counters = np.zeros(3, np.int64)
        self._status = RUNNING

    def advance(self, until: int) -> None:
        """Go on to step `until` at most; stop where all data are fitted."""
        if self._status != RUNNING:
            return
        r = self.recipe
        self._status = _advance(
            self.x, self.y, self.start, self.weights, r.margin, r.dt, r.batch,
            r.noise == "gaussian", self.key, self.counters, min(until, r.steps),
        )  # fmt: skip
        if self._status == RUNNING and self.counters[0] == r.steps and not self.unfitted().any():
            self._status = FITTED

    def unfitted(self) -> Bool[np.ndarray, "n"]:
        """Which data have a loss now."""
        f = self.x @ self.weights / math.sqrt(self.x.shape[1]) - self.start
        return ~(self.y * f >= self.recipe.margin)

    def gradients(self) -> tuple[float, float]:
        """Squared norm of the mean gradient, and the variance of one datum's (summed over w)."""
        push = np.where(self.unfitted(), self.y, 0)[:, None] * self.x / math.sqrt(self.x.shape[1])
        mean = push.mean(axis=0)
        return float(mean @ mean), float(((push - mean) ** 2).sum(axis=1).mean())

    @property
    def status(self) -> np.ndarray:
        """Of the one run."""
        return np.array([self._status])

    @property
    def moved(self) -> np.ndarray:
        """Last step that changed the weights, of the one run."""
        return self.counters[1:2].copy()

    def state_dict(self) -> dict[str, Any]:
        """What changes."""
        return {"w": self.weights.copy(), "counters": self.counters.copy(), "status": self._status}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.weights, self.counters = state["w"].copy(), state["counters"].copy()
        self._status = state["status"]


def max_margin(
    x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "n"]
) -> Float64[np.ndarray, "d"]:
    """Direction, of norm 1, of the hard-margin separator through the origin.

    min |w| with y_i w.x_i >= 1 is a least-distance problem, which non-negative least squares
    solves exactly (Lawson and Hanson 1974, chapter 23).

    Raises:
        DataError: the data cannot be separated by a plane through the origin.
    """
    from scipy.optimize import nnls

    scale = np.abs(x).max()
    rows = np.vstack([(y[:, None] * x / scale).T, np.ones(len(x))])
    target = np.append(np.zeros(x.shape[1]), 1.0)
    dual, _ = nnls(rows, target, maxiter=50 * len(x))
    rest = rows @ dual - target
    w = -rest[:-1] / rest[-1] if rest[-1] < -1e-12 else np.zeros(x.shape[1])
    if not ((x @ w) * y / scale > 0.5).all():
        raise DataError("data that no plane through the origin separates")
    return w / np.linalg.norm(w)
